"""What one micro batch allocates, as data: recorded once from the model's real code, and kept."""
