"""How a run gets into SLURM's queue, and what became of it there. Never imports torch or deepspeed."""
