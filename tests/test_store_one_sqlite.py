"""One SQLite library per process opens the database: a second one would drop the first one's locks.

Shown by experiment: with two copies, a commit that both had reported as done was gone, and no check noticed.
"""

import ast
import sqlite3
import sys
from pathlib import Path

import pysqlite3
import sqlite_utils.utils

from store import open_store
from store.connection import sqlite_version
from tests.fake_store import ROOT, a_spec, run_script

SOURCES = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if not any(part.startswith(".") or part in ("data", "node_modules") for part in path.relative_to(ROOT).parts)
]
DATABASE_MODULES = {"sqlite3", "pysqlite3", "apsw", "sqlite_utils", "duckdb", "sqlalchemy"}
ALLOWED = {
    "store/connection.py": {"sqlite_utils"},
    "tests/test_store_one_sqlite.py": {"pysqlite3", "sqlite3", "sqlite_utils"},
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            yield from (str(a.value).partition(".")[0] for a in node.args if isinstance(a, ast.Constant))


def called(path):
    calls = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return {function.attr for function in calls if isinstance(function, ast.Attribute)}


def test_only_the_store_opens_databases():
    found = {str(path.relative_to(ROOT)): set(imported(path)) & DATABASE_MODULES for path in SOURCES}
    assert {name: modules for name, modules in found.items() if modules} == ALLOWED


def test_nobody_begins_a_deferred_transaction_or_reads_past_the_store():
    forbidden = {"atomic", "executescript", "read_sql", "read_sql_query", "to_sql"}
    found = {str(path.relative_to(ROOT)): called(path) & forbidden for path in SOURCES if "tests" not in path.parts}
    assert {name: calls for name, calls in found.items() if calls} == {}


def test_sources_were_found():
    assert ROOT / "store" / "connection.py" in SOURCES
    assert len(SOURCES) > 30


def test_sqlite_utils_and_the_store_use_the_fixed_library():
    assert sqlite_utils.utils.sqlite3 is pysqlite3
    assert sqlite_version() == pysqlite3.sqlite_version


LIBRARIES = """
import sys
from store import open_store
from tests.fake_store import a_spec
import streamlit, pandas
with open_store(sys.argv[1]) as store:
    store.jobs.enqueue(a_spec())
    paths = {line.split()[-1] for line in open("/proc/self/maps") if "sqlite" in line.lower() and ".so" in line}
    print(store.connection.value("SELECT sqlite_version()"))
    print(type(store.connection.db.conn).__module__)
"""


def test_a_process_like_the_web_app_opens_it_with_the_fixed_library(tmp_path):
    process = run_script(LIBRARIES, tmp_path / "a.db")
    out, err = process.communicate()
    assert process.returncode == 0, err
    version, module = out.splitlines()[-2:]
    assert tuple(map(int, version.split("."))) >= (3, 51, 3)
    assert module.startswith("pysqlite3")


def test_the_standard_library_never_connects(tmp_path):
    """An audit hook sees every connection that any copy of the module opens in this process."""
    seen = []
    watching = True

    def hook(event, arguments):
        if watching and event == "sqlite3.connect":
            seen.append(arguments)

    sys.addaudithook(hook)
    with open_store(Path(tmp_path) / "a.db") as store:
        store.jobs.enqueue(a_spec())
        store.backup(tmp_path / "b.db")
        store.integrity()
    assert seen == []
    sqlite3.connect(":memory:").close()
    watching = False
    assert len(seen) == 1, "the hook does see the standard library"
