"""The words every layer shares: what a run is, what it measures, what can go wrong. Standard library only."""
