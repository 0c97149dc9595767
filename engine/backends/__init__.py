"""Ways to execute a batch of sequences. Each takes rows and returns what they grew by, with the time of every token."""
