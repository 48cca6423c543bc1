"""Finds what would keep a run from starting or slow it down: asks every host, judges in one place, shows one table."""
