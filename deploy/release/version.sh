#!/usr/bin/env bash
# Whether the manifest, the lock file, the chart and Debian's changelog name one version; with TAG, whether that is vVERSION.
#
#     deploy/release/version.sh [TAG]
set -euo pipefail
cd "$(dirname "$0")/../.."
version=$(awk '/^\[/ { section = $0 } section == "[workspace.package]" && $1 == "version" { gsub(/"/, "", $3); print $3 }' Cargo.toml)
failures=0
names() { # WHAT FOUND
    [[ $2 == "$version" ]] && return
    echo "version.sh: $1 says \"$2\", Cargo.toml says \"$version\"" >&2
    failures=1
}
names Cargo.lock "$(awk '$0 == "name = \"delo\"" { getline; gsub(/"/, "", $3); print $3 }' Cargo.lock)"
names deploy/helm/delo/Chart.yaml "$(awk '$1 == "appVersion:" { gsub(/"/, "", $2); print $2 }' deploy/helm/delo/Chart.yaml)"
names deploy/debian/changelog "$(sed -n '1s/^delo (\(.*\)-[0-9]*).*/\1/p' deploy/debian/changelog)"
[[ -z ${1:-} ]] || names "the tag without its v" "${1#v}"
[[ $failures == 0 ]] || exit 1
echo "version: $version"
