"""Searches for settings that fit a GPU and a target."""
