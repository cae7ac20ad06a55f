#!/usr/bin/env bash
# Packs a binary with its man pages, completions, unit and documents into OUT/delo-VERSION-TARGET.tar.gz. The
# same files give the same archive: its times are those of the last commit, or SOURCE_DATE_EPOCH.
#
#     deploy/release/archive.sh BINARY TARGET OUT
set -euo pipefail
usage="archive.sh BINARY TARGET OUT"
binary=$(realpath "${1:?$usage}")
target=${2:?$usage}
out=$(realpath -m "${3:?$usage}")
here=$(realpath "$(dirname "$0")")
cd "$here/../.."

name=delo-$("$binary" --version | awk '{ print $2 }')-$target
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
bash "$here/extras.sh" "$binary" "$scratch/$name"
install -D -m 755 "$binary" "$scratch/$name/bin/delo"
install -D -m 644 deploy/systemd/delo.service "$scratch/$name/share/doc/delo/delo.service"
install -m 644 LICENSE "$scratch/$name/"
when=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2> /dev/null || echo 0)}
mkdir -p "$out"
tar -C "$scratch" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$when" -c "$name" | gzip -9n > "$out/$name.tar.gz"
echo "$out/$name.tar.gz, $(stat -c %s "$out/$name.tar.gz") bytes"
