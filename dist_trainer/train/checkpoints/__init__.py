"""Checkpoints of a run: out of the engine into files while the run goes on, and back into an engine of any kind."""
