"""Which hosts, what they have, how they are reached, and where the ranks meet."""
