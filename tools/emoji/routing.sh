#!/usr/bin/env bash
# Prints the first table of docs/ROUTING.md: the accuracy with which each signal and metric decides the task,
# on the test split of data/emoji-cmml.
#
#     bash tools/emoji/routing.sh [RUNS]           RUNS: folder of all output, default runs/routing
#
# Keys depend on the frozen backbone alone, so that the partitions are linear heads of one epoch; those of the
# moving average are trained for ten.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${1:-runs/routing}
data=data/emoji-cmml
mkdir -p "$runs"
cargo build --release --locked --bin delo
delo=target/release/delo

row() { # NAME METRIC EPOCHS FLAGS…
    "$delo" train --data $data --all --out "$runs/$1" --resume --first-adapted-layer 6 --epochs "$3" --head-weight 1 --key-metric "$2" "${@:4}" > "$runs/$1.txt"
    printf '%-24s' "$1"
    for inputs in "--eta 0.7" "--eta 0" "--eta 1 --missing text" "--eta 1 --missing image"; do
        # shellcheck disable=SC2086
        "$delo" eval --data $data --partitions "$runs/$1" $inputs --json |
            python3 -c 'import json, sys; print("%10.1f" % json.load(sys.stdin)["agnostic"][0]["routing"]["all"], end="")'
    done
    echo
}

printf '%-24s%10s%10s%10s%10s\n' "" mixed complete "image only" "text only"
row mean@0-ema plain 10 --plain-signal mean@0 --plain-average ema
for signal in mean@0 mean@3 mean@6 cls@6 pooled; do
    row "$signal" plain 1 --plain-signal $signal
done
for signal in parts@2 parts@3 parts@6 summary; do
    row "$signal-whitened" whitened 1 --key-signal $signal
done
