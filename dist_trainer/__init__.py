"""Launch and train one GPT transformer on many GPUs, with its memory planned, measured and judged."""

__version__ = "0.1.0"
