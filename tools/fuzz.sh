#!/usr/bin/env bash
# Fuzzes every target from its corpus in the repository, and fails if an input breaks a promise.
#
#     bash tools/fuzz.sh [SECONDS] [TARGET...]     SECONDS for each target, 20 by default
#
# Needs cargo-fuzz (cargo install cargo-fuzz) and a C++ compiler; the toolchain may be stable. New inputs are
# written to fuzz/found/. FUZZ_PROFILE=dev builds faster, for runs of a few seconds.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-20}
if ! [[ $seconds =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: bash tools/fuzz.sh [SECONDS] [TARGET...]; SECONDS for each target, a whole number" >&2
    exit 2
fi
shift || true
targets=("$@")
[[ ${#targets[@]} -gt 0 ]] || targets=(image text artifact manifest request configuration)

case ${FUZZ_PROFILE:-release} in
    release) profile=() ;;
    dev) profile=(--dev) ;;
    *) echo "FUZZ_PROFILE is release or dev, not $FUZZ_PROFILE" >&2 && exit 2 ;;
esac

# Sanitizers are an unstable flag; RUSTC_BOOTSTRAP makes the stable compiler accept it.
export RUSTC_BOOTSTRAP=1 CARGO_INCREMENTAL=0
status=0
for target in "${targets[@]}"; do
    case $target in
        image) longest=65536 ;;
        artifact) longest=32768 ;;
        *) longest=8192 ;;
    esac
    mkdir -p "fuzz/found/$target"
    echo "== $target, $seconds s"
    # New inputs are written to the first folder; the other folders are only read.
    cargo fuzz run ${profile[@]+"${profile[@]}"} "$target" "fuzz/found/$target" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len="$longest" \
        -dict="fuzz/dictionaries/$target.dict" -print_final_stats=1 || status=1
done
if [[ $status != 0 ]]; then
    echo "an input broke a promise: it is in fuzz/artifacts/; fuzz/README.md describes the next steps" >&2
fi
exit $status
