#!/usr/bin/env bash
# Prints the accuracy table of docs/ACCURACY.md: trains the partitions of each row on data/emoji-cmml,
# evaluates them on the test split and computes intervals.
#
#     bash tools/emoji/tables.sh [RUNS]            RUNS: folder of all output, default runs/tables
#
# BACKBONE, if set, is the directory of another checkpoint, models/emoji-general for example.
#
# An interrupted run is continued. Linear heads are trained for 50 epochs at the learning rate that is best on
# the val split; at 1e-3 the training loss is then below 0.07 in every session. Needs python3.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${1:-runs/tables}
data=(--data data/emoji-cmml ${BACKBONE:+--backbone "$BACKBONE"})
mkdir -p "$runs"
cargo build --release --locked --bin delo
delo=target/release/delo

train() { # NAME FLAGS…
    "$delo" train "${data[@]}" --all --out "$runs/$1" --resume "${@:2}"
}

renew() { # NAME OF FLAGS…: the adapters of the runs OF with other statistics
    "$delo" train "${data[@]}" --all --adapters-of "$runs/$2" --out "$runs/$1" --force "${@:3}"
}

evaluate() { # NAME SPLIT FLAGS…: prints the tables, writes NAME-SPLIT.jsonl
    printf '\n== %s, %s\n' "$1" "$2"
    "$delo" eval "${data[@]}" --partitions "$runs/$1" --split "$2" --samples "$runs/$1-$2.jsonl" "${@:3}"
}

# The head alone, and the rules that compare keys.
alone=(--head-weight 1 --key-metric whitened)
train adapters --lr 1e-3 "${alone[@]}"
train paper --lr 1e-3 --head-weight 1 --key-metric plain --plain-signal mean@0 --plain-average ema --dummy-image 64 64
best=
for lr in 1e-4 3e-4 1e-3 3e-3 1e-2 3e-2; do
    train "linear-$lr" "${alone[@]}" --first-adapted-layer 6 --lr "$lr" --epochs 50 > "$runs/linear-$lr.txt"
    ap=$("$delo" eval "${data[@]}" --partitions "$runs/linear-$lr" --split val --json |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["oracle"]["ap"])')
    echo "linear head, rate $lr: task-oracle AP on val $ap"
    best=$(printf '%s\n%s' "$best" "$ap linear-$lr" | sort -rn | head -n 1)
done
linear=${best#* }
echo "linear head: $linear"

renew lda adapters
renew analytic adapters --head-weight 0
for rows in adapters paper "$linear" lda analytic; do
    evaluate "$rows" test
done
# The same adapters, routed by the other rule that their partitions have keys for.
"$delo" eval "${data[@]}" --partitions "$runs/adapters" --metric plain --samples "$runs/adapters-plain-test.jsonl"
python3 tools/emoji/intervals.py "$runs/adapters-test.jsonl" "$runs/$linear-test.jsonl" "$runs/paper-test.jsonl" "$runs/adapters-plain-test.jsonl"
python3 tools/emoji/intervals.py "$runs/lda-test.jsonl" "$runs/adapters-test.jsonl" "$runs/analytic-test.jsonl"
