"""What a checkpoint is, whether it is whole, and what has changed since. How weights are written is not known here."""
