"""One module per launcher and its helpers: from a request to the command that starts the ranks."""
