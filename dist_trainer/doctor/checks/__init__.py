"""From what the hosts found to findings: pure functions, and the only place where anything is judged."""
