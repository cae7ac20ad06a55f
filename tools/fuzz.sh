#!/usr/bin/env bash
# Fuzzes every target from its kept corpus, each for some seconds (20 by default), and fails where a promise is broken: bash tools/fuzz.sh 60
# Wants cargo-fuzz (cargo install cargo-fuzz) and a C++ compiler; the toolchain may be stable. New inputs stay in fuzz/found/.
# FUZZ_PROFILE=dev builds faster what is to run for seconds only.
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

# Sanitizers are an unstable flag, which the stable compiler takes too when it is told to.
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
    # The first folder takes what is found, the others are read.
    cargo fuzz run ${profile[@]+"${profile[@]}"} "$target" "fuzz/found/$target" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len="$longest" \
        -dict="fuzz/dictionaries/$target.dict" -print_final_stats=1 || status=1
done
if [[ $status != 0 ]]; then
    echo "an input broke a promise: fuzz/artifacts/ holds it; fuzz/README.md says how to go on" >&2
fi
exit $status
