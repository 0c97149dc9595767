"""Linear layers whose weights are quantized, alone or with what they are multiplied with."""
