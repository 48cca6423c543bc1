"""Text from a checkpoint: what the model has learnt. Knows no engine, and not how a run is trained."""
