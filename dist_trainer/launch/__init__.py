"""How N processes are started. Plans are values; only `run.py` acts. Imports neither torch, deepspeed nor train."""
