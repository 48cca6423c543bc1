"""The hosts of a run: which they are, what they have, how they are reached, and where the ranks rendezvous."""
