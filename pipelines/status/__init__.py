"""Activity of processes: written by those that work, read by `igdit status`."""
