#!/usr/bin/env bash
# Trains the partitions that the program embeds: sessions 0 to 6 of data/emoji-cmml (the README trains session
# 7).
#
#     bash tools/emoji/partitions.sh [RUNS]        RUNS: folder of all output, default runs/emoji
#
# The same build on the same kind of processor gives the same tensors. An interrupted run is continued. Takes
# 11 to 15 minutes on two busy cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${1:-runs/emoji}

cargo run --release --locked -- train --data data/emoji-cmml --all --out "$runs" --lr 1e-3 --resume
mkdir -p models/emoji-mini/partitions
for partition in "$runs"/*.safetensors; do
    [[ $partition == */symbols.safetensors ]] || cp "$partition" models/emoji-mini/partitions/
done
cargo run --release --locked -- eval --data data/emoji-cmml
