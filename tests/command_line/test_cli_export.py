"""`export`: formats, files and mistakes."""

import csv
import io
import json

import pyarrow.parquet as pq
import pytest

from spec.measures import MEASURES


def test_export_csv_hides_formulas_from_spreadsheets(isoquant, stored):
    code, out, _ = isoquant("export", "--format", "csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["run_id"] for row in rows] == list(stored)
    assert set(MEASURES) < set(rows[0])
    assert rows[1]["model"].startswith("'=cmd")
    assert float(rows[0]["accuracy"]) == pytest.approx(2 / 3)
    assert rows[0]["energy_j"] == ""


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_export_to_a_file(isoquant, stored, tmp_path, kind):
    path = tmp_path / f"runs.{kind}"
    code, out, _ = isoquant("export", "--format", kind, "--output", path, "--json")
    assert code == 0
    assert json.loads(out) == {"path": str(path), "format": kind, "rows": 2}
    rows = {
        "csv": lambda: list(csv.DictReader(path.open())),
        "json": lambda: json.loads(path.read_text()),
        "parquet": lambda: pq.read_table(path).to_pylist(),
    }[kind]()
    assert [row["run_id"] for row in rows] == list(stored)
    assert float(rows[0]["n_problems"]) == 9


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--format", "xlsx"], 2, "csv, json, parquet"),
        (["--format", "parqet"], 2, "did you mean 'parquet'"),
        (["--format", "parquet"], 2, "--output"),
        (
            ["--output", "/absent/folder/x.csv"],
            2,
            "'/absent/folder/x.csv' cannot be written (No such file or directory)",
        ),
        (["--output", "/tmp/" + "x" * 256], 2, "File name too long"),
        (["--output", "/tmp"], 2, "name a file"),
        (["--output", "/proc/x.csv"], 2, "/proc"),
    ],
)
def test_export_mistakes(isoquant, arguments, code, words):
    got, out, err = isoquant("export", *arguments)
    assert (got, out) == (code, "")
    assert err.startswith("error: ")
    assert words in err


def test_a_full_disk_is_no_fault_of_the_name(isoquant, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("commands.export.write_whole", full)
    code, _, err = isoquant("export", "--output", tmp_path / "x.csv")
    assert (code, err) == (1, f"error: {tmp_path}/x.csv: No space left on device.\n")


def test_export_as_csv_and_json_at_once_is_refused(isoquant):
    code, out, _ = isoquant("export", "--format", "csv", "--json")
    assert code == 2
    assert "--json prints JSON, not csv" in json.loads(out)["error"]["message"]


def test_export_of_an_empty_database(isoquant):
    assert isoquant("export")[0] == 0
    assert json.loads(isoquant("export", "--format", "json")[1]) == []
