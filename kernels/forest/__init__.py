"""Attention of a decoding step over prefixes that sequences share: their keys and values are read once for all."""
