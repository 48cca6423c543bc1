"""One DeepSpeed JSON: its keys, what they may say, what contradicts, what it resolves to. Never torch, deepspeed."""
