"""Imports point one way: each package imports only what stands beneath it, and owns its third-party libraries."""

import ast
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGINE = {"spec", "kernels", "tasks", "engine"}
WEB = {"spec", "tasks", "store", "analysis", "ui"}
# The web process may ask which models and devices there are; these modules import no torch, as a test below proves.
WEB_ENGINE = {
    "engine.catalog",
    "engine.measure.hardware",
    "engine.predict",
    "engine.refusals",
    "engine.recipes",
    "engine.artifacts",
}
WEB_ENGINE |= {f"engine.laboratory.{name}" for name in ("cases", "compiled", "device", "op")}
MAY_IMPORT = {
    "spec": {"spec"},
    "kernels": {"kernels"},
    "tasks": {"spec", "tasks"},
    "store": {"spec", "store"},
    "analysis": {"spec", "analysis"},
    "engine": ENGINE,
    "lab": ENGINE | {"lab"},
    "jobs": ENGINE | {"store", "analysis", "jobs"},
    "commands": ENGINE | {"store", "analysis", "jobs", "commands"},
    "cli.py": {"spec", "commands"},
    "ui": WEB | WEB_ENGINE,
    "pages": WEB,
    "app.py": WEB,
}
TORCH, SCREEN, SQL, ONNX = {"engine", "lab", "kernels"}, {"ui", "pages", "app.py"}, {"store"}, {"engine"}
OWNERS = {
    **dict.fromkeys(("torch", "transformers", "accelerate", "tokenizers", "safetensors", "pynvml"), TORCH),
    **dict.fromkeys(("streamlit", "plotly"), SCREEN),
    **dict.fromkeys(("sqlite_utils", "sqlite3", "pysqlite3", "apsw"), SQL),
    "triton": {"kernels"},
    **dict.fromkeys(("onnx", "onnx_ir", "onnxruntime", "onnxscript"), ONNX),
}
OURS = {name.removesuffix(".py") for name in MAY_IMPORT}


def sources(part):
    path = ROOT / part
    # lab/runs holds what trainings leave behind, never committed; what somebody tries out there is their own affair.
    return [path] if path.is_file() else sorted(f for f in path.rglob("*.py") if ROOT / "lab" / "runs" not in f.parents)


def imports(path):
    """Every module a file imports anywhere in it, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            base = str(node.module)
            names = [f"{base}.{alias.name}" for alias in node.names]
            yield from (n if (ROOT / n.replace(".", "/")).with_suffix(".py").exists() else base for n in names)


def allowed(part, module):
    top = module.partition(".")[0]
    if top in OURS:
        return top in MAY_IMPORT[part] or module in MAY_IMPORT[part]
    if part == "spec":
        return top in sys.stdlib_module_names
    return part in OWNERS.get(top, {part})


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_point_one_way(part):
    files = sources(part)
    assert files or not (ROOT / part).exists(), "nothing to look at"
    wrong = [f"{f.relative_to(ROOT)} imports {m}" for f in files for m in imports(f) if not allowed(part, m)]
    assert wrong == []


def test_the_rules_notice_a_violation():
    assert not allowed("tasks", "engine.run")
    assert not allowed("ui", "engine.run")
    assert not allowed("pages", "torch")
    assert not allowed("jobs", "sqlite3")
    assert not allowed("spec", "numpy")
    assert allowed("ui", "engine.catalog")


def test_every_package_is_known():
    found = {p.parent.name for p in ROOT.glob("*/*.py")} - {"tests", "bench", "scripts"}
    assert found <= OURS


@pytest.mark.slow
def test_the_web_process_never_imports_torch(tmp_path):
    modules = {m for part in ("ui", "pages") for f in sources(part) for m in imports(f)} | WEB_ENGINE | {"app"}
    modules |= {".".join(f.relative_to(ROOT).with_suffix("").parts) for f in sources("ui") if "entry" not in f.parts}
    code = (
        "import importlib, sys\n"
        f"for name in {sorted(modules)!r}: importlib.import_module(name)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'the web process imported torch'"
    )
    environment = os.environ | {"ISOQUANT_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, timeout=170)


def test_no_distribution_named_kernels_and_a_model_loads_beside_our_kernels_folder(tmp_path):
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("kernels")
    from transformers import AutoModelForCausalLM, LlamaConfig

    import kernels

    assert Path(kernels.__file__) == ROOT / "kernels" / "__init__.py"
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.hidden_size == 16
