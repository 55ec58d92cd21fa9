"""Benchmarks: ``python -m benchmarks`` lists what is measured. `peers` must not import `reverb_async`."""
