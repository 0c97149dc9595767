"""``runs list | show | cancel | resume | delete | restore | purge``: what is stored."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any

import typer

from analysis.explain import differences
from analysis.format import count, duration, percent, si
from commands.database import open_database
from commands.options import FIELDS, Db, Json
from commands.output import print_json, print_table, say
from commands.results import flat, print_levels, print_measures
from spec.choices import JobState
from spec.errors import InputError, unknown
from spec.results import RunResult
from spec.run_spec import RunSpec
from store import NotFound, Run, Store
from store.jobs import why_not_resumed

LIST_COLUMNS = (
    "run_id", "state", "created", "model", "precision", "strategy_text", "task", "task_limit", "batch_size", "seed",
    "done", "total", "accuracy", "accuracy_low", "accuracy_high", "n_problems", "latency_p50_s", "throughput_run_tok_s",
    "energy_j", "energy_valid", "energy_method", "spec_text", "message",
)  # fmt: skip
STATE_WORDS = {"done": [JobState.SUCCEEDED], "live": [state for state in JobState if not state.is_final]}
RunId = Annotated[str, typer.Argument(help="The run's id: 12 hex digits, from `runs list`.", show_default=False)]
Search = Annotated[str, typer.Option("--search", help="Only runs whose text has all these words.")]
State = Annotated[
    str | None,
    typer.Option(
        "--state", help="Only runs in this state, e.g. failed; done: succeeded; live: any that has not ended."
    ),
]
Limit = Annotated[int, typer.Option("--limit", min=1, help="How many at the most.")]
Deleted = Annotated[bool, typer.Option("--deleted", help="The deleted runs instead of the others.")]
SHOWN_TEXT = 300
Days = Annotated[int, typer.Option("--days", min=0, help="Only runs that were deleted so long ago.")]

app = typer.Typer(no_args_is_help=True, help="Look at stored runs; cancel, resume, delete, restore and purge them.")


@app.command("list")
def list_runs(
    search: Search = "", state: State = None, limit: Limit = 50, deleted: Deleted = False, db: Db = None,
    json: Json = False,
) -> None:  # fmt: skip
    """List runs, the newest first."""
    filters = {"state": _states(state)} if state is not None else None
    with open_database(db) as store:
        rows = store.runs.table(filters, LIST_COLUMNS, limit=limit, search=search, deleted=deleted)
    if json:
        print_json(rows)
    elif rows:
        titles = ("run", "state", "accuracy", "n", "latency", "tokens/s", "", "age")
        print_table(titles, [_row(row) for row in rows], right=("accuracy", "n", "latency", "tokens/s", "age"))
    else:
        say("No runs.")


def _states(word: str) -> list[JobState]:
    """The states that a word means: one by its own name, or several by a word of the pages."""
    if word not in STATE_WORDS and word not in list(JobState):
        raise unknown("state", word, [*JobState, *STATE_WORDS], field="state")
    return STATE_WORDS.get(word) or [JobState(word)]


def _row(row: dict[str, Any]) -> tuple[object, ...]:
    state = row["state"]
    if state == JobState.RUNNING and row["total"]:
        state = f"{state} {row['done']}/{row['total']}"
    measured = row["n_problems"] is not None
    return (
        row["run_id"],
        state,
        percent(row["accuracy"], row["accuracy_low"], row["accuracy_high"]) if measured else "",
        count(row["n_problems"]) if measured else "",
        duration(row["latency_p50_s"]) if measured else "",
        si(row["throughput_run_tok_s"]) if measured else "",
        row["spec_text"],
        duration(max(0.0, time.time() - row["created"])),
    )


@app.command()
def show(run_id: RunId, db: Db = None, json: Json = False) -> None:
    """Show one run: configuration, state, when, measures, accuracy by level, what ran and on which machine."""
    with open_database(db) as store:
        run = _get(store, run_id)
        job = store.jobs.of_run(run_id)
        answered = store.answers.count(run_id)
        history = store.jobs.events(job.job_id) if job is not None else []
    detail = job.detail if job is not None else None
    if json:
        print_json(as_json(run, answered, detail) | {"history": history})
        return
    say(f"Run {run.run_id}: {run.spec}")
    say(f"{run.state}{' (deleted)' if run.deleted_at else ''}. {run.message or ''}".rstrip())
    say(", ".join(f"{word} {_date(at)}" for word, at in _instants(run) if at is not None))
    say("")
    print_table(("settings", ""), _settings(run.spec))
    if run.result is None:
        say(f"{answered} problems answered." if answered else "Nothing measured yet.")
        for line in (detail or "").splitlines()[-20:]:
            say(f"  | {line}")
        return
    say("")
    print_measures(run.result)
    print_levels(run.result.by_level)
    print_table(("what ran, and where", ""), _ran(run.result))
    for text in run.result.notes:
        say(f"Note: {text}")


def _instants(run: Run) -> tuple[tuple[str, float | None], ...]:
    return ("created", run.created), ("started", run.started), ("finished", run.finished)


def _date(at: float) -> str:
    return f"{datetime.fromtimestamp(at):%Y-%m-%d %H:%M:%S}"


def _settings(spec: RunSpec) -> list[tuple[str, str]]:
    """The seed, and what is not at its default; model, recipe and strategy stand above."""
    usual = RunSpec(spec.model, strategy=spec.strategy, compression=spec.compression)
    changed = [(d.field, d.ours) for d in differences(spec.to_dict(), usual.to_dict())]
    named = [(FIELDS.get(f if "." in f else f"spec.{f}", f.rpartition(".")[2]), value) for f, value in changed]
    return [("seed", str(spec.seed)), *((name.replace("_", "-"), value) for name, value in named if name != "seed")]


def _ran(result: RunResult) -> list[tuple[str, str]]:
    """The environment, what is not known left out; a prompt is shown by its beginning."""
    found = [(d.field, d.ours) for d in differences(result.environment, {}) if d.ours != "none"]
    return [(name, value if len(value) <= SHOWN_TEXT else value[:SHOWN_TEXT] + "…") for name, value in found]


def as_json(run: Run, answered: int, detail: str | None) -> dict[str, Any]:
    """A stored run as one flat object; the measures are missing until it has succeeded."""
    return {
        "run_id": run.run_id,
        "state": run.state,
        "message": run.message,
        "detail": detail,
        "created": run.created,
        "started": run.started,
        "finished": run.finished,
        "deleted": run.deleted_at is not None,
        "answered": answered,
        "spec": run.spec.to_dict(),
        **(flat(run.result) if run.result is not None else {}),
    }


@app.command()
def cancel(run_id: RunId, db: Db = None, json: Json = False) -> None:
    """Stop a queued or running run; what it has measured is kept."""
    with open_database(db) as store:
        _get(store, run_id)
        job = store.jobs.of_run(run_id)
        if job is None or job.state.is_final:
            raise InputError(f"Run {run_id} has ended already; there is nothing to cancel.")
        _done(store.jobs.request_cancel(job.job_id).state, run_id, json)


@app.command()
def resume(run_id: RunId, db: Db = None, json: Json = False) -> None:
    """Queue the rest of a run that was cancelled or failed; what it has answered is not asked again."""
    with open_database(db) as store:
        run = _get(store, run_id)
        if why := why_not_resumed(run):
            raise InputError(why)
        _done(store.jobs.enqueue(run.spec, run_id=run_id, source="cli").state, run_id, json)


@app.command()
def delete(run_id: RunId, db: Db = None, json: Json = False) -> None:
    """Take a run out of every list and chart; `runs restore` brings it back."""
    with open_database(db) as store:
        _get(store, run_id)
        store.runs.delete(run_id)
    _done("deleted", run_id, json)


@app.command()
def restore(run_id: RunId, db: Db = None, json: Json = False) -> None:
    """Bring a deleted run back."""
    with open_database(db) as store:
        if _get(store, run_id).deleted_at is None:
            raise InputError(f"Run {run_id} is not deleted; there is nothing to restore.")
        store.runs.restore(run_id)
    _done("restored", run_id, json)


@app.command()
def purge(days: Days = 30, db: Db = None, json: Json = False) -> None:
    """Remove for good, with their answers, the runs that were deleted at least so many days ago."""
    with open_database(db) as store:
        gone = store.runs.purge(days * 86_400.0)
    if json:
        print_json({"purged": gone})
    else:
        say(f"{gone} deleted run{'' if gone == 1 else 's'} removed for good.")


def _get(store: Store, run_id: str) -> Run:
    try:
        return store.runs.get(run_id, samples=False)
    except NotFound as error:
        raise InputError(str(error)) from None


def _done(state: str, run_id: str, json: bool) -> None:
    if json:
        print_json({"run_id": run_id, "state": state})
    else:
        say(f"Run {run_id}: {state}.")
