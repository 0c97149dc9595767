"""Migration 1: the first schema. Never edited once released; what changes later is a migration of its own.

``runs`` is one wide row of plain columns for each run and nothing else, for the frontier reads 100,000 of them; the
bulky JSON of a run lies beside it in ``run_details``. The words of the CHECKs are those of ``spec.choices`` when this
was written.
"""

STATES = "'queued','running','retry_wait','cancelling','succeeded','failed','cancelled','quarantined'"

HARDWARE = """
CREATE TABLE hardware (
    hardware_id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    details TEXT NOT NULL CHECK (json_valid(details)),
    created REAL NOT NULL
) STRICT
"""

MODELS = """
CREATE TABLE models (
    fingerprint TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    parameters INTEGER,
    created REAL NOT NULL
) STRICT
"""

SPECS = """
CREATE TABLE specs (
    spec_key TEXT PRIMARY KEY,
    spec TEXT NOT NULL CHECK (json_valid(spec)),
    created REAL NOT NULL
) STRICT
"""

RUNS = f"""
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL UNIQUE CHECK (length(run_id) = 12),
    state TEXT NOT NULL CHECK (state IN ({STATES})),
    source TEXT NOT NULL,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    deleted_at REAL,
    message TEXT,
    spec_key TEXT NOT NULL REFERENCES specs (spec_key),
    spec_text TEXT NOT NULL,
    model TEXT NOT NULL,
    weights TEXT NOT NULL CHECK (weights IN ('auto','fp32','bf16','fp16')),
    kv_cache TEXT NOT NULL CHECK (kv_cache IN ('auto')),
    backend TEXT NOT NULL CHECK (backend IN ('transformers')),
    device TEXT NOT NULL,
    attention TEXT NOT NULL CHECK (attention IN ('auto','eager','sdpa')),
    batching TEXT NOT NULL CHECK (batching IN ('static')),
    batch_size INTEGER NOT NULL CHECK (batch_size > 0),
    strategy TEXT NOT NULL,
    strategy_text TEXT NOT NULL,
    n INTEGER NOT NULL CHECK (n > 0),
    temperature REAL,
    task TEXT NOT NULL,
    split TEXT NOT NULL,
    task_limit INTEGER,
    prompt_style TEXT NOT NULL CHECK (prompt_style IN ('zero-shot','few-shot','chat')),
    seed INTEGER NOT NULL,
    repeats INTEGER NOT NULL,
    phase TEXT,
    phase_detail TEXT,
    done INTEGER NOT NULL DEFAULT 0,
    total INTEGER,
    correct INTEGER NOT NULL DEFAULT 0,
    checked INTEGER NOT NULL DEFAULT 0,
    tokens INTEGER NOT NULL DEFAULT 0,
    elapsed_s REAL NOT NULL DEFAULT 0,
    tok_s REAL,
    updated REAL,
    hardware_id TEXT REFERENCES hardware (hardware_id),
    model_fingerprint TEXT REFERENCES models (fingerprint),
    commit_id TEXT,
    task_hash TEXT,
    ran_device TEXT,
    ran_dtype TEXT,
    ran_attention TEXT,
    energy_method TEXT CHECK (energy_method IN ('nvml_counter','nvml_power','rapl','modelled','none')),
    energy_valid INTEGER CHECK (energy_valid IN (0, 1)),
    energy_reason TEXT,
    accuracy REAL,
    accuracy_low REAL,
    accuracy_high REAL,
    n_problems INTEGER,
    n_correct INTEGER,
    n_failed INTEGER,
    pass_at_n REAL,
    perplexity_token REAL,
    perplexity_byte REAL,
    latency_p50_s REAL,
    latency_p90_s REAL,
    latency_p95_s REAL,
    latency_p99_s REAL,
    latency_mean_s REAL,
    ttft_p50_s REAL,
    ttft_p95_s REAL,
    queue_p50_s REAL,
    itl_p50_s REAL,
    itl_p95_s REAL,
    itl_p99_s REAL,
    tpot_p50_s REAL,
    throughput_tok_s REAL,
    throughput_run_tok_s REAL,
    problems_per_s REAL,
    wall_s REAL,
    load_s REAL,
    warmup_s REAL,
    energy_j REAL,
    idle_w REAL,
    j_per_token REAL,
    j_per_problem REAL,
    j_per_correct REAL,
    tokens_prompt INTEGER,
    tokens_generated INTEGER,
    tokens_verifier INTEGER,
    flops_generated REAL,
    flops_total REAL,
    flops_no_reuse REAL,
    flops_per_problem REAL,
    tokens_per_problem REAL,
    peak_memory_bytes INTEGER,
    weights_bytes INTEGER,
    kv_bytes_peak INTEGER,
    process_rss_bytes INTEGER
) STRICT
"""

RUN_DETAILS = """
CREATE TABLE run_details (
    run_id TEXT PRIMARY KEY REFERENCES runs (run_id) ON DELETE CASCADE,
    reasons TEXT NOT NULL CHECK (json_valid(reasons)),
    by_level TEXT NOT NULL CHECK (json_valid(by_level)),
    environment TEXT NOT NULL CHECK (json_valid(environment)),
    notes TEXT NOT NULL CHECK (json_valid(notes))
) STRICT
"""

SAMPLES = """
CREATE TABLE samples (
    run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    count INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (run_id, name)
) STRICT
"""

QUESTIONS = """
CREATE TABLE questions (
    question_id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 16),
    question TEXT NOT NULL,
    reference TEXT
) STRICT
"""

ANSWERS = """
CREATE TABLE answers (
    id INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE,
    repeat INTEGER NOT NULL,
    problem_id TEXT NOT NULL,
    question_id INTEGER NOT NULL REFERENCES questions (question_id),
    level INTEGER,
    answer TEXT,
    correct INTEGER CHECK (correct IN (0, 1)),
    chosen INTEGER,
    tokens_prompt INTEGER NOT NULL,
    tokens_generated INTEGER NOT NULL,
    tokens_verifier INTEGER NOT NULL,
    latency_s REAL,
    ttft_s REAL,
    error TEXT,
    candidates BLOB NOT NULL,
    UNIQUE (run_id, repeat, problem_id)
) STRICT
"""

JOBS = f"""
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL UNIQUE CHECK (length(job_id) = 12),
    run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE,
    state TEXT NOT NULL CHECK (state IN ({STATES})),
    source TEXT NOT NULL,
    foreground INTEGER NOT NULL CHECK (foreground IN (0, 1)),
    idempotency_key TEXT UNIQUE,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    attempt INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    fence INTEGER NOT NULL DEFAULT 0,
    worker TEXT,
    worker_pid INTEGER,
    worker_start INTEGER,
    worker_namespace TEXT,
    lease_until REAL,
    not_before REAL,
    boot_id TEXT,
    reason TEXT,
    detail TEXT,
    CHECK ((state IN ('running','cancelling')) = (lease_until IS NOT NULL))
) STRICT
"""

JOB_EVENTS = f"""
CREATE TABLE job_events (
    id INTEGER PRIMARY KEY,
    job_id TEXT NOT NULL REFERENCES jobs (job_id) ON DELETE CASCADE,
    at REAL NOT NULL,
    event TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ({STATES})),
    attempt INTEGER NOT NULL,
    worker TEXT,
    detail TEXT
) STRICT
"""

WORKERS = """
CREATE TABLE workers (
    name TEXT PRIMARY KEY,
    device TEXT,
    pid INTEGER NOT NULL,
    start INTEGER,
    namespace TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    started REAL NOT NULL,
    seen REAL NOT NULL,
    seen_clock REAL NOT NULL,
    run_id TEXT
) STRICT
"""

SETTINGS = """
CREATE TABLE settings (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL CHECK (json_valid(value)),
    updated REAL NOT NULL
) STRICT
"""

COUNTERS = """
CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT
"""

STATEMENTS = (
    HARDWARE,
    MODELS,
    SPECS,
    RUNS,
    RUN_DETAILS,
    SAMPLES,
    QUESTIONS,
    ANSWERS,
    JOBS,
    JOB_EVENTS,
    WORKERS,
    SETTINGS,
    COUNTERS,
    "CREATE INDEX runs_created ON runs (created)",
    "CREATE INDEX runs_spec ON runs (spec_key)",
    # For pages of answers in the order they came: without it each page would sort the whole run.
    "CREATE INDEX answers_run ON answers (run_id)",
    "CREATE INDEX answers_question ON answers (question_id)",
    "CREATE INDEX jobs_waiting ON jobs (id) WHERE state IN ('queued','retry_wait')",
    "CREATE INDEX jobs_leased ON jobs (id) WHERE state IN ('running','cancelling')",
    # One live job for a run: a second one would measure it twice.
    "CREATE UNIQUE INDEX jobs_live ON jobs (run_id) WHERE state IN ('queued','running','retry_wait','cancelling')",
    "CREATE INDEX jobs_run ON jobs (run_id)",
    "CREATE INDEX job_events_job ON job_events (job_id)",
    # Starts at random, so that a cache never takes one database's results for another's.
    "INSERT INTO counters (name, value) VALUES ('results', abs(random() % 1000000000000))",
)
