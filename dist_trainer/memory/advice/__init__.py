"""What is said of a plan before a run: how it compares with the limits, why it does not fit, the nearest change."""
