"""What one run of a script needs: data, training, evaluation, records and figures."""

from experiment import errors  # noqa: F401  first: Ctrl-C during the other imports is one line
