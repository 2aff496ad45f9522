"""Measurements of experiments: numbers, costs, and what may be compared."""
