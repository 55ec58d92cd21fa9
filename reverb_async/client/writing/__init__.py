"""Inserting: rows as they stand, and trajectories step by step, over sessions that survive reconnects."""
