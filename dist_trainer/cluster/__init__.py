"""Which hosts take part, and which rank this process is. Nothing here writes the environment."""
