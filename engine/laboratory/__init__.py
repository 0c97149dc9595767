"""One kernel at a time: how exact it is, how fast, and how near to what the hardware can do."""
