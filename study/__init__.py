"""What the report compares: many runs of the scripts, and what is drawn and tabulated from them."""

import experiment.figures  # noqa: F401  before pyplot: it sets the backend, whatever a user's is
