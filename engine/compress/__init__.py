"""Compressed models: the modules that stand in a model of transformers in place of its own layers."""
