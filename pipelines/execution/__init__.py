"""Execution of plans: the scheduler, and runners on Ray or in this process."""
