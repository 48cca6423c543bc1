"""What is said of a plan before a run: what it comes to, why it does not fit, the nearest change."""
