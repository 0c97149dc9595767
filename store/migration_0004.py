"""What searches, drafts and early exits leave behind.

Each answer keeps its own account of the work, so that a run's sums need no second look at the model; the tree of a
search and the layers at which tokens left the model lie beside the candidates, in blobs that plain runs leave empty.
``tree`` is the last column: a page of answers that does not show it does not read past the others.
"""

STATEMENTS = (
    "ALTER TABLE answers ADD COLUMN tokens_cached INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE answers ADD COLUMN tokens_drafted INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE answers ADD COLUMN tokens_accepted INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE answers ADD COLUMN target_passes INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE answers ADD COLUMN flops_generated REAL",
    "ALTER TABLE answers ADD COLUMN flops_total REAL",
    "ALTER TABLE answers ADD COLUMN flops_no_reuse REAL",
    "ALTER TABLE answers ADD COLUMN exits BLOB",
    "ALTER TABLE answers ADD COLUMN tree BLOB",
    "ALTER TABLE runs ADD COLUMN tokens_cached INTEGER",
    "ALTER TABLE runs ADD COLUMN tokens_drafted INTEGER",
    "ALTER TABLE runs ADD COLUMN tokens_accepted INTEGER",
    "ALTER TABLE runs ADD COLUMN acceptance_rate REAL",
    "ALTER TABLE runs ADD COLUMN tokens_per_pass REAL",
    "ALTER TABLE runs ADD COLUMN mean_exit_layers REAL",
)
