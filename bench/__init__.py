"""Benchmarks: both sides of every comparison in one run, results appended with hardware and commit."""
