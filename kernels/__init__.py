"""Our own GPU kernels; docs/decisions.md says why this file holds a docstring and nothing else.

A top-level ``kernels`` shadows a package of that name that transformers probes for: no ``__version__``, no imports.
"""
