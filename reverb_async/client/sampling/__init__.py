"""Sampling: streams of batches, put together as nested arrays."""
