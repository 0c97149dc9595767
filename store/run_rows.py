"""How a run becomes a row of the database, and a row a run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from spec.choices import EnergyMethod, JobState, parse_choice
from spec.errors import StoreError, shorten
from spec.measures import MEASURES
from spec.results import Origin, Progress, RunResult
from spec.run_spec import RunSpec
from store.connection import Connection, Row
from store.values import flag, number, pack_series, text, to_json

HARDWARE_DETAILS = ("cpu", "cores", "memory_gib", "gpus", "gpu_driver", "machine", "os")
# column <- key of RunResult.environment
ENVIRONMENT_COLUMNS = {
    "hardware_id": "hardware_id",
    "model_fingerprint": "model_fingerprint",
    "commit_id": "commit",
    "reward_fingerprint": "reward_fingerprint",
    "task_hash": "task_hash",
    "ran_device": "device",
    "ran_dtype": "dtype",
    "ran_attention": "attention",
}


@dataclass(frozen=True)
class Run:
    """A stored run in whatever state. Times are seconds since 1970.

    ``result`` is None until the run has succeeded; ``progress`` None until it has measured something.
    """

    run_id: str
    state: JobState
    spec: RunSpec
    source: str
    created: float
    started: float | None
    finished: float | None
    deleted_at: float | None
    message: str | None
    phase: str | None
    phase_detail: str | None
    progress: Progress | None
    result: RunResult | None

    @property
    def spec_key(self) -> str:
        """Names the configuration."""
        return self.spec.key()


def spec_columns(spec: RunSpec) -> Row:
    """The columns of ``runs`` that come from the specification: what was asked for."""
    return {
        "spec_key": spec.key(),
        "spec_text": text(spec),
        "model": text(spec.model),
        "weights": str(spec.precision.weights),
        "kv_cache": str(spec.precision.kv_cache),
        "compression": text(spec.compression),
        "precision": text(spec.compression) or str(spec.precision.weights),
        "backend": str(spec.runtime.backend),
        "device": text(spec.runtime.device),
        "attention": str(spec.runtime.attention),
        "fusion": str(spec.runtime.fusion),
        "graphs": str(spec.runtime.graphs),
        "batching": str(spec.runtime.batching),
        "caching": str(spec.runtime.caching),
        "batch_size": spec.runtime.batch_size,
        "strategy": spec.strategy.name,
        "strategy_text": text(spec.strategy),
        "n": spec.strategy.samples,
        "temperature": getattr(spec.strategy, "temperature", None),
        "task": text(spec.task.name),
        "split": text(spec.task.split),
        "task_limit": spec.task.limit,
        "prompt_style": str(spec.task.prompt_style),
        "seed": spec.seed,
        "repeats": spec.repeats,
    }


def save_spec(connection: Connection, spec: RunSpec, now: float) -> None:
    """Keep the specification itself, once for all its runs."""
    connection.execute(
        "INSERT INTO specs (spec_key, spec, created) VALUES (?, ?, ?) ON CONFLICT (spec_key) DO NOTHING",
        (spec.key(), to_json("the specification", spec.to_dict()), now),
    )


def result_columns(result: RunResult) -> Row:
    """The columns of ``runs`` that come from the result. Raises StoreError naming a measure that is no number."""
    unknown = sorted(set(result.measures) - set(MEASURES))
    if unknown:
        raise StoreError(f"{shorten(unknown[0])} is not a known measure; nothing was saved.")
    measures = {m.name: number(m.name, result.measures.get(m.name), integer=m.integer) for m in MEASURES.values()}
    environment = {column: text(result.environment.get(key)) for column, key in ENVIRONMENT_COLUMNS.items()}
    energy = {
        "energy_method": str(parse_choice(EnergyMethod, result.energy_method)),
        "energy_valid": flag("energy_valid", result.energy_valid),
        "energy_reason": text(result.energy_reason),
    }
    return measures | environment | energy


def save_result(connection: Connection, run_id: str, result: RunResult, now: float) -> None:
    """Write the result of a run into all the tables that hold a part of it; for use inside a transaction."""
    columns = result_columns(result)
    save_hardware(connection, result.environment, now)
    _save_model(connection, run_id, result.environment, now)
    names = ", ".join(f"{name} = ?" for name in columns)
    connection.execute(f"UPDATE runs SET {names} WHERE run_id = ?", (*columns.values(), run_id))
    details = {key: to_json(key, getattr(result, key)) for key in ("reasons", "by_level", "environment", "notes")}
    connection.insert("run_details", {"run_id": run_id} | details)
    connection.execute_many(
        "INSERT INTO samples (run_id, name, count, data) VALUES (?, ?, ?, ?)",
        [(run_id, text(name), len(series), pack_series(name, series)) for name, series in result.samples.items()],
    )
    results_changed(connection)


def save_hardware(connection: Connection, environment: dict[str, Any], now: float) -> None:
    """Write the machine that an environment describes, where it is not known yet; for use inside a transaction."""
    hardware_id = text(environment.get("hardware_id"))
    if hardware_id is None:
        return
    details = {key: environment[key] for key in HARDWARE_DETAILS if key in environment}
    connection.execute(
        "INSERT INTO hardware (hardware_id, name, details, created) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (hardware_id) DO NOTHING",
        (hardware_id, text(environment.get("hardware_name") or hardware_id), to_json("hardware", details), now),
    )


def _save_model(connection: Connection, run_id: str, environment: dict[str, Any], now: float) -> None:
    fingerprint = text(environment.get("model_fingerprint"))
    if fingerprint is None:
        return
    connection.execute(
        "INSERT INTO models (fingerprint, name, parameters, created) "
        "SELECT ?, model, ?, ? FROM runs WHERE run_id = ? "
        "ON CONFLICT (fingerprint) DO UPDATE SET parameters = coalesce(parameters, excluded.parameters)",
        (fingerprint, number("parameters", environment.get("model_parameters"), integer=True), now, run_id),
    )


def save_origin(connection: Connection, run_id: str, origin: Origin, now: float) -> None:
    """Write what the answers of a run come from; for use inside a transaction."""
    columns = {name: text(value) for name, value in asdict(origin).items()}
    _save_model(connection, run_id, columns, now)
    names = ", ".join(f"{name} = ?" for name in columns)
    connection.execute(f"UPDATE runs SET {names} WHERE run_id = ?", (*columns.values(), run_id))


def results_changed(connection: Connection) -> None:
    """Count up what caches of results are keyed by; for use inside the transaction that changes them."""
    connection.execute("UPDATE counters SET value = value + 1 WHERE name = 'results'")


def save_progress(connection: Connection, run_id: str, progress: Progress, now: float) -> None:
    """Write how far a run is, for the pages that watch it."""
    columns = {
        "done": number("done", progress.done, integer=True),
        "total": number("total", progress.total, integer=True),
        "correct": number("correct", progress.correct, integer=True),
        "checked": number("checked", progress.checked, integer=True),
        "tokens": number("tokens", progress.tokens, integer=True),
        "elapsed_s": number("elapsed_s", progress.elapsed_s),
        "tok_s": number("tok_s", progress.tok_s),
        "updated": now,
    }
    names = ", ".join(f"{name} = ?" for name in columns)
    connection.execute(f"UPDATE runs SET {names} WHERE run_id = ?", (*columns.values(), run_id))


def read_progress(row: Row) -> Progress | None:
    """The progress in a row of ``runs``; None before the first."""
    if row["total"] is None:
        return None
    names = ("done", "total", "correct", "checked", "tokens", "elapsed_s", "tok_s")
    return Progress(**{name: row[name] for name in names})


def read_result(row: Row, samples: dict[str, list[float]]) -> RunResult:
    """The result in a row of ``runs`` joined with ``run_details``."""
    valid = row["energy_valid"]
    return RunResult.from_dict(
        {
            "measures": {name: row[name] for name in MEASURES},
            "energy_method": row["energy_method"],
            "energy_valid": None if valid is None else bool(valid),
            "energy_reason": row["energy_reason"],
            "samples": samples,
        }
        | {key: json.loads(row[key]) for key in ("reasons", "by_level", "environment", "notes")}
    )
