"""What the implementation costs, against the usual way; each module but two is a script."""
