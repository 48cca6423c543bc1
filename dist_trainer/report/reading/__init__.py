"""Reads a run's folder (records, plan, configuration) once, in memory that does not grow with the run's length."""
