"""From an experiment to its nodes, their keys and a plan."""
