"""Both ends of a rank's guard: the thread that serves the guards, the guard itself, and what they say to each other."""
