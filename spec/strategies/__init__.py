"""Declarations of the decoding strategies, by family; ``spec.strategy`` is the door to all of them."""
