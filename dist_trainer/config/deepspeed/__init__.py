"""One DeepSpeed JSON: keys, values, contradictions, what it resolves to. Imports no torch or deepspeed."""
