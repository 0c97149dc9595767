"""Kernels for processors: one C++ file, compiled once for the machine it runs on and called through ctypes."""
