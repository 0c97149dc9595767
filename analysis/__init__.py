"""Pure functions on measured rows: statistics, frontiers, wording. numpy and ``spec`` only."""
