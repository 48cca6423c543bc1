"""What is saved, is it whole, and what has changed since? Nothing here knows how weights and states are written."""
