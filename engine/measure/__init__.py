"""What a run cost: time, energy, memory, compute, and the machine it ran on. Formulas in docs/metrics.md."""
