"""docs/metrics.md says what the code says."""

import re
from pathlib import Path

from engine.measure.energy import EnergyReason
from spec.choices import EnergyMethod
from spec.measures import MEASURES

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "metrics.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| (.+?) \| (higher|lower|–) \| (.+) \|$", re.MULTILINE)


def test_every_measure_is_listed_once_with_its_unit_direction_and_meaning():
    documented = {name: (unit, better, meaning) for name, unit, better, meaning in ROW.findall(TEXT)}
    expected = {
        m.name: (m.unit or "–", "–" if m.better == "neither" else str(m.better), m.formula) for m in MEASURES.values()
    }
    assert documented == expected
    assert len(ROW.findall(TEXT)) == len(MEASURES)


def test_every_energy_method_and_reason_is_explained():
    for word in [*EnergyMethod, *EnergyReason]:
        assert f"`{word}`" in TEXT, word
