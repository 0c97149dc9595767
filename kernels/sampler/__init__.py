"""The next token of each row: temperature, filters, draw and log-probability."""
