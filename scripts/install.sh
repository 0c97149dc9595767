#!/usr/bin/env bash
# Creates the virtual environment and installs one requirements file into it. torch comes first and alone: a plain
# `torch` would pull gigabytes of CUDA libraries onto a machine that has no NVIDIA GPU.
set -euo pipefail
requirements=$1
python=${PYTHON:-python3}
venv=${VENV:-.venv}
torch_version=2.13.0

"$python" - <<'EOF' || { echo "Isoquant needs Python 3.11 or newer; start with: make run PYTHON=python3.11" >&2; exit 1; }
import sys
sys.exit(sys.version_info < (3, 11))
EOF

if [ ! -x "$venv/bin/python" ]; then
  echo "Creating the virtual environment in $venv ..."
  "$python" -m venv "$venv" || {
    echo "Could not create $venv: install your system's venv package (Debian, Ubuntu: apt-get install python3-venv)." >&2
    exit 1
  }
fi
pip=("$venv/bin/python" -m pip --disable-pip-version-check)

if ! "$venv/bin/python" -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$torch_version')" 2>/dev/null; then
  echo "Installing torch $torch_version (the largest part; once) ..."
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    "${pip[@]}" install -q "torch==$torch_version"
  elif [ -n "${ISOQUANT_TORCH_INDEX:-}" ]; then
    "${pip[@]}" install -q "torch==$torch_version" --index-url "$ISOQUANT_TORCH_INDEX"
  elif ! "${pip[@]}" install -q "torch==$torch_version+cpu" 2>/dev/null; then
    echo "No CPU build of torch in your package index; taking the default build, which may be several gigabytes."
    echo "To avoid that, set ISOQUANT_TORCH_INDEX to the CPU wheel index named on PyTorch's installation page."
    "${pip[@]}" install -q "torch==$torch_version"
  fi
fi
echo "Installing $requirements ..."
"${pip[@]}" install -q -r "$requirements"
# The Triton kernels are checked without a GPU: interpreted, and compiled for GPUs that are not there. PyTorch for NVIDIA
# GPUs brings its own Triton.
if [[ $requirements == *dev* ]] && "$venv/bin/python" -c "import torch, sys; sys.exit(torch.version.cuda is not None)"; then
  "${pip[@]}" install -q --no-deps triton==3.6.0 || echo "No Triton for this machine: its kernels' tests are skipped."
fi
