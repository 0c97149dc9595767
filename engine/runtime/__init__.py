"""Our own inference runtime: a paged KV cache with shared prefixes, continuous batching, one ragged batch per step."""
