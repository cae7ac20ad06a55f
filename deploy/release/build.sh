#!/usr/bin/env bash
# Builds delo as one statically linked file, OUT/delo, with its debug information beside it, OUT/delo.debug.
#
#     deploy/release/build.sh OUT [TARGET]     # x86_64-unknown-linux-musl, aarch64-unknown-linux-musl…
#
# Without TARGET: musl for this machine's processor where rustc has it (rustup target add), else glibc with
# crt-static. For another processor, cargo-zigbuild with zig compiles and links (pip install cargo-zigbuild
# ziglang). musl needs the package musl-tools, for the C code of ring and zstd.
set -euo pipefail
out=$(realpath -m "${1:?build.sh OUT [TARGET]}")
cd "$(dirname "$0")/../.."

machine=$(uname -m)
has_target() { [[ -d $(rustc --print target-libdir --target "$1" 2> /dev/null) ]]; }
target=${2:-}
if [[ -z $target ]]; then
    target=$machine-unknown-linux-musl
    has_target "$target" || target=$machine-unknown-linux-gnu
fi
has_target "$target" || { echo "build.sh: rustc has no $target: rustup target add $target" >&2; exit 1; }

# The paths of the machine that builds stand in no message of a panic.
flags=("--remap-path-prefix=$PWD=delo" "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo")
# Every musl target is linked statically. With --target, the flag holds for the binary and not for build scripts.
[[ $target != *-gnu ]] || flags+=(-C target-feature=+crt-static)
build=build
[[ $target == "$machine"-* ]] || build=zigbuild
# Paths may have blanks, which RUSTFLAGS cannot hold.
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && echo "${flags[*]}")
export CARGO_ENCODED_RUSTFLAGS
cargo "$build" --release --locked --package delo --bin delo --target "$target"

built=$(realpath "${CARGO_TARGET_DIR:-target}/$target/release/delo")
mkdir -p "$out"
cd "$out"
# What strips must know the processor.
objcopy=objcopy
[[ $target == "$machine"-* ]] || objcopy=${target%%-*}-linux-gnu-objcopy
"$objcopy" --only-keep-debug --compress-debug-sections "$built" delo.debug
# Names of functions stay, for backtraces.
"$objcopy" --strip-debug --add-gnu-debuglink=delo.debug "$built" delo
chmod 755 delo
chmod 644 delo.debug
echo "$target: $out/delo, $(stat -c %s delo) bytes ($(stat -c %s "$built") with debug information)"
