"""One module a launcher, and what belongs to it: from a request to the command that starts the ranks."""
