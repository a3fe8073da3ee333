"""What one run of a script needs: data, training, evaluation, records and figures."""
