#!/usr/bin/env bash
# Builds the sdist and from it the wheel, installs the wheel in a fresh environment, checks its types, and runs the
# tests against a server: DELO_BINARY, else target/release/delo or target/debug/delo. PYTHON names another Python.
set -euo pipefail
cd "$(dirname "$0")"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/env"
python=$scratch/env/bin/python
"$python" -m pip install --quiet build
"$python" -m build --outdir "$scratch/dist" . >"$scratch/build.log" 2>&1 || { cat "$scratch/build.log" >&2; exit 1; }
wheel=$(ls "$scratch"/dist/*.whl)
"$python" -m pip install --quiet "${wheel}[pil,test]"
"$python" -m mypy --strict --cache-dir "$scratch/mypy" -p delo_client
"$python" -m mypy --strict --cache-dir "$scratch/mypy" tests
"$python" -m pytest -p no:cacheprovider "$@"
