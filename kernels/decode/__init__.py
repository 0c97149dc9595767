"""Attention of a decoding step over a paged KV cache."""
