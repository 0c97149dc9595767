"""A language model behind an OpenAI-compatible server: the connection, its answers, and what it can do."""
