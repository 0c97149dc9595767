"""Rotary positions, the norms of queries and keys, and the write to the paged cache."""
