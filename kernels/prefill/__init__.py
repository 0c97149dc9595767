"""Attention of prompts and pieces of prompts over a paged KV cache."""
