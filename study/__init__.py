"""What the report compares: many runs of the scripts, and what is drawn and tabulated from them."""

import sys

import experiment.figures  # noqa: F401  before pyplot: it sets the backend, whatever a user's is

try:
    import scipy  # noqa: F401
    import sklearn  # noqa: F401
except ImportError as error:
    remedy = "python -m pip install -r study/requirements.txt"
    sys.exit(f"error: {error.name} is not installed. Install what the study needs: {remedy}")
