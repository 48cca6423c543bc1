"""How do N processes start there? Plans are values; running one is the thin edge. Never torch, deepspeed, train."""
