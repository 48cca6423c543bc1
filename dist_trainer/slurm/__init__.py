"""How does a run get into SLURM's queue, and what became of it there? Never torch, deepspeed."""
