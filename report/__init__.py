"""The report and the hand-in."""
