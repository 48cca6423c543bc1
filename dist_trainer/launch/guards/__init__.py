"""Both ends of a rank's guard: the thread in `launch` that serves guards, the guard itself, and their protocol."""
