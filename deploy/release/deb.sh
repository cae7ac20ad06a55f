#!/usr/bin/env bash
# Makes the Debian package of a built binary with cargo-deb, OUT/delo_VERSION_ARCH.deb. What is in it stands in
# Cargo.toml, [package.metadata.deb], and in deploy/debian.
#
#     deploy/release/deb.sh BINARY OUT
#
# DEB_FAST=1 compresses less, for tests. Needs cargo-deb (cargo install --locked cargo-deb), and objcopy where the binary has debug information.
set -euo pipefail
binary=$(realpath "${1:?deb.sh BINARY OUT}")
out=$(realpath -m "${2:?deb.sh BINARY OUT}")
here=$(realpath "$(dirname "$0")")
cd "$here/../.."

case $(file --brief "$binary") in
    *x86-64*) architecture=x86_64 ;;
    *aarch64*) architecture=aarch64 ;;
    *) echo "deb.sh: $binary is no program for x86-64 or aarch64" >&2 && exit 1 ;;
esac
# A target folder as cargo would leave it, which cargo-deb reads.
export CARGO_TARGET_DIR
CARGO_TARGET_DIR=$(mktemp -d)
trap 'rm -rf "$CARGO_TARGET_DIR"' EXIT
release=$CARGO_TARGET_DIR/$architecture-unknown-linux-gnu/release
install -D -m 755 "$binary" "$release/delo"
# Names of functions stay, for backtraces.
if readelf --section-headers --wide "$binary" | grep -q '\.debug_info'; then objcopy --strip-debug "$release/delo"; fi
# The generated files come from a binary that this machine can run: DELO_HOST, where BINARY is of another processor.
bash "$here/extras.sh" "${DELO_HOST:-$binary}" "$release/extras"
mkdir -p "$out"
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2> /dev/null || echo 0)}
export SOURCE_DATE_EPOCH
# The system's xz is many times as fast as that of a cargo-deb which was installed with --debug.
cargo deb --no-build --no-strip --locked --compress-system ${DEB_FAST:+--fast} --target "$architecture-unknown-linux-gnu" --output "$out" ${DEB_REVISION:+--deb-revision "$DEB_REVISION"}
