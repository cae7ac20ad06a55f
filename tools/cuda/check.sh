#!/usr/bin/env bash
# Checks that the CUDA build compiles. Needs no GPU and no CUDA toolkit: nvcc and the headers come from PyPI
# into a temporary virtual environment. Run from anywhere: bash tools/cuda/check.sh [cargo arguments]. Needs
# python3 with venv, g++, about 2 GB of disk, and the network once.
#
# CUDA_COMPUTE_CAP (80 by default) is the generation of GPUs for which the kernels are compiled. CUDA_HOME, if
# set, is used instead of PyPI's nvcc.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-80}"

if [ -z "${CUDA_HOME:-}" ]; then
    venv=$(mktemp -d)
    trap 'rm -rf "$venv"' EXIT
    python3 -m venv "$venv"
    # cublas 13.2 and later belong to the next minor version of the toolkit.
    "$venv/bin/pip" install --quiet --disable-pip-version-check \
        'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-cuda-cccl==13.0.*' 'nvidia-nvvm==13.0.*' \
        'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-nvrtc==13.0.*' 'nvidia-curand==10.4.*' 'nvidia-cublas>=13,<13.2'
    CUDA_HOME=$(dirname "$(dirname "$("$venv/bin/python" -c '
import pathlib, sysconfig
print(next(pathlib.Path(sysconfig.get_paths()["purelib"], "nvidia").glob("*/bin/nvcc")))')")")
    export CUDA_HOME
fi
export CUDA_PATH="$CUDA_HOME" PATH="$CUDA_HOME/bin:$PATH"

nvcc --version
cargo check --locked --all-targets --features cuda "$@"
