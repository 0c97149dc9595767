"""What the kernel laboratory measured."""

STATEMENTS = (
    """
CREATE TABLE kernel_results (
    id INTEGER PRIMARY KEY,
    measured REAL NOT NULL,
    source TEXT NOT NULL,
    hardware_id TEXT NOT NULL REFERENCES hardware (hardware_id),
    commit_id TEXT,
    environment TEXT NOT NULL,
    device TEXT NOT NULL,
    op TEXT NOT NULL,
    case_key TEXT NOT NULL,
    case_text TEXT NOT NULL,
    case_json TEXT NOT NULL,
    side TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('measured','failed','cannot')),
    error REAL,
    torch_error REAL,
    median_s REAL,
    q1_s REAL,
    q3_s REAL,
    repeats INTEGER,
    bytes_moved INTEGER,
    flops INTEGER,
    copy_bytes_per_s REAL,
    matmul_flop_per_s REAL,
    compiled TEXT,
    note TEXT,
    UNIQUE (hardware_id, device, case_key, side, measured)
) STRICT
""",
    "CREATE INDEX kernel_results_op ON kernel_results (op, measured)",
)
