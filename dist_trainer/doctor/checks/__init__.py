"""Turns what the hosts found into findings: pure functions, and the only place where anything is judged."""
