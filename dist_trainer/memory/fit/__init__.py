"""Searches the settings for those that fit a card and a target."""
