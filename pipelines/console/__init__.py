"""Output on the terminal: progress, tables, plans and findings."""
