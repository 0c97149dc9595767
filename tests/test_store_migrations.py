"""The schema, from nothing and from an older version, whole or not at all."""

import re
from dataclasses import replace

import pytest

from spec import choices
from spec.errors import StoreError
from spec.measures import MEASURES
from spec.run_spec import Runtime
from store import migrations, open_store
from store.migrations import MIGRATIONS, Migration
from tests.fake_store import a_finished_run, a_result, a_spec, an_answer

NEWER = {  # schema that brought them -> measures
    4: {
        *("tokens_cached", "tokens_drafted", "tokens_accepted"),
        *("acceptance_rate", "tokens_per_pass", "mean_exit_layers"),
    },
    8: {"logit_kl", "top1_agreement"},
}
LATER = Migration(
    "For these tests: a column, and a table made anew.",
    (
        "ALTER TABLE runs ADD COLUMN colour TEXT",
        "CREATE TABLE settings_new (key TEXT PRIMARY KEY, value TEXT NOT NULL, updated REAL NOT NULL) STRICT",
        "INSERT INTO settings_new SELECT * FROM settings",
        "DROP TABLE settings",
        "ALTER TABLE settings_new RENAME TO settings",
        # runs is referred to by others, which is what makes this one hard
        "CREATE TABLE runs_new AS SELECT * FROM runs",
        "DROP TABLE runs_new",
    ),
)


def columns(store, table):
    return {row[1]: row[2] for row in store.connection.execute(f"PRAGMA table_info({table})")}


def test_runs_has_a_column_for_each_measure(tmp_path):
    with open_store(tmp_path / "a.db") as store:
        live = columns(store, "runs")
    missing = {m.name: "INTEGER" if m.integer else "REAL" for m in MEASURES.values() if m.name not in live}
    assert not missing, f"spec.measures has grown: add a migration with these columns to runs: {missing}"
    assert {name: live[name] for name in MEASURES} == {
        m.name: "INTEGER" if m.integer else "REAL" for m in MEASURES.values()
    }


@pytest.mark.parametrize(
    ("table", "column", "choice"),
    [
        ("runs", "state", choices.JobState),
        ("jobs", "state", choices.JobState),
        ("job_events", "state", choices.JobState),
        ("runs", "weights", choices.Dtype),
        ("runs", "kv_cache", choices.KvDtype),
        ("runs", "fusion", choices.Fusion),
        ("runs", "graphs", choices.Graphs),
        ("runs", "backend", choices.Backend),
        ("runs", "attention", choices.Attention),
        ("runs", "batching", choices.Batching),
        ("runs", "caching", choices.Caching),
        ("runs", "prompt_style", choices.PromptStyle),
        ("runs", "energy_method", choices.EnergyMethod),
    ],
)
def test_checks_know_exactly_the_words_of_the_spec(tmp_path, table, column, choice):
    with open_store(tmp_path / "a.db") as store:
        sql = store.connection.value("SELECT sql FROM sqlite_schema WHERE name = ?", (table,))
    words = re.search(rf"CHECK \({column} IN \(([^)]*)\)\)", sql).group(1)
    assert set(re.findall(r"'([^']*)'", words)) == {str(word) for word in choice}


def test_a_wrong_word_is_refused_by_the_database_itself(tmp_path):
    with open_store(tmp_path / "a.db") as store:
        run_id = a_finished_run(store)
        with pytest.raises(StoreError, match="CHECK constraint"):
            store.connection.execute("UPDATE runs SET weights = 'int3' WHERE run_id = ?", (run_id,))
        with pytest.raises(StoreError, match="cannot store TEXT"):
            store.connection.execute("UPDATE runs SET accuracy = 'high' WHERE run_id = ?", (run_id,))


@pytest.fixture
def older(tmp_path, monkeypatch):
    """A database of today with something in it, and a program that knows one migration more."""
    with open_store(tmp_path / "a.db") as store:
        run_id = a_finished_run(store)
        store.answers.add(run_id, [an_answer()])
    monkeypatch.setattr(migrations, "MIGRATIONS", [*MIGRATIONS, LATER])
    return tmp_path / "a.db", run_id


def test_an_older_database_is_copied_and_then_upgraded(older, monkeypatch):
    path, run_id = older
    with open_store(path) as store:
        assert "colour" in columns(store, "runs")
        assert store.connection.value("PRAGMA user_version") == len(MIGRATIONS) + 1
        assert store.runs.get(run_id).spec == a_spec(seed=0)
        assert store.answers.of_run(run_id) == [an_answer()]
        assert store.connection.value("PRAGMA foreign_keys") == 1
        assert store.integrity() == []
    (copy,) = (path.parent / "backups").iterdir()
    monkeypatch.setattr(migrations, "MIGRATIONS", MIGRATIONS)
    with open_store(copy) as before:
        assert "colour" not in columns(before, "runs")
        assert before.answers.of_run(run_id) == [an_answer()]


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
def test_rows_of_every_older_schema_read_back_with_defaults(tmp_path, monkeypatch, version):
    spec = replace(a_spec(), runtime=Runtime(backend="transformers", batching="static"))  # what all versions know
    with open_store(tmp_path / "new.db") as store:
        run_id = a_finished_run(store, spec=spec)
        store.answers.add(run_id, [an_answer()])
        rows = {
            table: store.connection.rows(f"SELECT * FROM {table} ORDER BY rowid")
            for table in ("hardware", "models", "specs", "questions", "runs", "run_details", "samples", "answers")
        }
    monkeypatch.setattr(migrations, "MIGRATIONS", MIGRATIONS[:version])
    with open_store(tmp_path / "old.db") as store:
        for table, some in rows.items():
            known = columns(store, table)
            for row in some:
                store.connection.insert(table, {k: v for k, v in row.items() if k in known})
        assert store.connection.value("PRAGMA user_version") == version
    monkeypatch.setattr(migrations, "MIGRATIONS", MIGRATIONS)
    with open_store(tmp_path / "old.db") as store:
        assert store.answers.of_run(run_id) == [an_answer()]
        assert store.runs.get(run_id).spec == spec
        assert store.runs.table(columns=["caching"]) == [{"caching": "auto"}]
        assert {row[1] for row in store.connection.execute("PRAGMA index_list(runs)")} >= {"runs_created", "runs_spec"}
        store.runs.create(replace(spec, runtime=Runtime(backend="isoquant", batching="continuous", caching="off")))
        measures = store.runs.get(run_id).result.measures
        lost = {name for name in MEASURES if measures[name] != a_result(0).measures[name]}
        assert lost == set().union(*(names for brought, names in NEWER.items() if version < brought))
        assert all(measures[name] is None for name in lost)
        assert store.integrity() == []


def test_a_second_program_finds_nothing_left_to_upgrade(older):
    path, _ = older
    with open_store(path), open_store(path):
        pass
    open_store(path).close()
    assert len(list((path.parent / "backups").iterdir())) == 1


@pytest.mark.parametrize("stop", range(len(LATER.statements) + 1))
def test_an_upgrade_that_dies_at_any_statement_leaves_the_old_schema_whole(older, monkeypatch, stop):
    path, run_id = older
    broken = Migration("Dies.", (*LATER.statements[:stop], "INSERT INTO no_such_table VALUES (1)"))
    monkeypatch.setattr(migrations, "MIGRATIONS", [*MIGRATIONS, broken])
    with pytest.raises(StoreError, match="no_such_table"):
        open_store(path)
    monkeypatch.setattr(migrations, "MIGRATIONS", MIGRATIONS)
    with open_store(path) as store:
        assert "colour" not in columns(store, "runs")
        assert store.answers.of_run(run_id) == [an_answer()]
        assert store.integrity() == []


def test_an_upgrade_that_would_break_references_is_given_up(older, monkeypatch):
    path, run_id = older
    careless = Migration("Loses the questions.", ("DELETE FROM questions",))
    monkeypatch.setattr(migrations, "MIGRATIONS", [*MIGRATIONS, careless])
    with pytest.raises(StoreError, match="broken references"):
        open_store(path)
    monkeypatch.setattr(migrations, "MIGRATIONS", MIGRATIONS)
    with open_store(path) as store:
        assert store.answers.of_run(run_id) == [an_answer()]


@pytest.mark.parametrize("stop", range(0, len(MIGRATIONS[0].statements), 5))
def test_a_creation_that_dies_leaves_no_database(tmp_path, monkeypatch, stop):
    broken = Migration("Dies.", (*MIGRATIONS[0].statements[:stop], "INSERT INTO no_such_table VALUES (1)"))
    monkeypatch.setattr(migrations, "MIGRATIONS", [broken])
    with pytest.raises(StoreError):
        open_store(tmp_path / "a.db")
    assert not (tmp_path / "a.db").exists()
    monkeypatch.setattr(migrations, "MIGRATIONS", MIGRATIONS)
    with open_store(tmp_path / "a.db") as store:
        assert store.integrity() == []
