#!/usr/bin/env bash
# Writes FOLDER/SHA256SUMS over all files in FOLDER and reads it back; with --check only reads it, and refuses
# files that it does not name.
#
#     deploy/release/checksums.sh FOLDER
#     deploy/release/checksums.sh --check FOLDER
set -euo pipefail
check=
if [[ ${1:-} == --check ]]; then
    check=yes
    shift
fi
cd "${1:?checksums.sh [--check] FOLDER}"

files() { find . -maxdepth 1 -type f ! -name SHA256SUMS -printf '%P\0' | sort -z; }
[[ -n $(files | tr '\0' x) ]] || { echo "checksums.sh: $PWD has no files" >&2; exit 1; }
[[ -n $check ]] || files | xargs -0 sha256sum > SHA256SUMS
sha256sum --check --strict --quiet SHA256SUMS
# What is published must also be named.
unnamed=$(comm -23 <(files | tr '\0' '\n' | sort) <(sed 's/^[0-9a-f]* [ *]//' SHA256SUMS | sort))
[[ -z $unnamed ]] || { echo "checksums.sh: not in SHA256SUMS: $unnamed" >&2; exit 1; }
echo "SHA256SUMS: $(wc -l < SHA256SUMS) files"
