"""What would keep a run from starting or slow it down? Asked on every host, judged in one place, shown as one table."""
