"""What a host finds out about itself. Nothing here judges, and nothing imports torch or deepspeed."""
