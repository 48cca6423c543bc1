"""A checkpoint's states as tensors: read from any layout, compared, and written for other programs."""
