"""What the queue learned about workers.

A lost worker is held against a run only where it got nowhere: how many answers there were when it was claimed. And one
that is there but can start no run says why.
"""

STATEMENTS = (
    "ALTER TABLE jobs ADD COLUMN answers_before INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE workers ADD COLUMN reason TEXT",
)
