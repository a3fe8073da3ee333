"""What a run of either script shares: data, training, evaluation, records and figures, in that order."""
