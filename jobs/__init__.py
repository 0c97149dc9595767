"""Where and when the engine runs: the engine's own process, the worker that feeds it, the queue's rules."""
