"""RMS normalisation, with the residual sum before it."""
