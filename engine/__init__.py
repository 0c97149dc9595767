"""Turns a run specification into a measured result. Knows no database and no user interface."""
