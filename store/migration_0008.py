"""Compression is a choice of a run, and there are two more back ends.

New words in a CHECK, so the table of migration 6 is made anew with them, and columns. Runs of before compressed
nothing, which is what the empty recipe says.
"""

from store import migration_0006

_TABLE, _, *_SWAP = migration_0006.STATEMENTS
_COLUMNS = f"fusion, graphs, {migration_0006._COLUMNS}"
_NEW = """,
    compression TEXT NOT NULL DEFAULT '',
    precision TEXT NOT NULL DEFAULT 'auto',
    logit_kl REAL,
    top1_agreement REAL
) STRICT
"""

STATEMENTS = (
    _TABLE.replace(
        "backend IN ('isoquant','transformers')", "backend IN ('isoquant','transformers','onnxruntime','openai')"
    ).replace("\n) STRICT\n", _NEW),
    f"INSERT INTO runs_new ({_COLUMNS}, precision) SELECT {_COLUMNS}, weights FROM runs",
    *_SWAP,
)
