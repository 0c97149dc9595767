"""Attention, fusion, CUDA graphs and the format of the KV cache are choices of a run.

New words in two CHECKs, so the table of the migration before is made anew with them, and two columns. Runs of before
left fusion and graphs to the back end, which is what ``auto`` says.
"""

from store import migration_0005

_TABLE, _, *_SWAP = migration_0005.STATEMENTS
_COLUMNS = f"caching, {migration_0005._COLUMNS.strip()}"
_ATTENTION = (
    "('auto','plain','native','triton','cascade','eager','sdpa','sdpa-math','sdpa-flash','sdpa-efficient',"
    "'sdpa-cudnn','flex')"
)
_NEW = """,
    fusion TEXT NOT NULL DEFAULT 'auto' CHECK (fusion IN ('auto','off','kernels','compile')),
    graphs TEXT NOT NULL DEFAULT 'auto' CHECK (graphs IN ('auto','on','off'))
) STRICT
"""

STATEMENTS = (
    _TABLE.replace("attention IN ('auto','eager','sdpa')", f"attention IN {_ATTENTION}")
    .replace("kv_cache IN ('auto')", "kv_cache IN ('auto','int8','fp8')")
    .replace("\n) STRICT\n", _NEW),
    f"INSERT INTO runs_new ({_COLUMNS}) SELECT {_COLUMNS} FROM runs",
    *_SWAP,
)
