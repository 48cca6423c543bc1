"""From a trace and an engine to a plan: the bytes of each rank, by phase."""
