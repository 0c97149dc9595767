"""Linear layers whose weights alone are quantized: int8, int4 in groups, fp8."""
