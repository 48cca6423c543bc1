"""Which hosts, and which rank am I? Nothing here writes the environment."""
