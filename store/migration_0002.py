"""A lost worker is held against a run only where it got nowhere: how many answers there were when it was claimed."""

STATEMENTS = ("ALTER TABLE jobs ADD COLUMN answers_before INTEGER NOT NULL DEFAULT 0",)
