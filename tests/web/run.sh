#!/usr/bin/env bash
# Starts a server with its HTTP port and checks its page in headless Chromium (check.mjs).
#
#     bash tests/web/run.sh [SERVER] [SCREENSHOTS]
#
# SERVER: the program, target/release/delo or target/debug/delo where it is left out. SCREENSHOTS: a folder for the
# pictures. Needs node, npm, jq and chromium.
set -euo pipefail
cd "$(dirname "$0")"
repository=$(cd ../.. && pwd)
server=${1:-}
for profile in release debug; do
    [[ -n $server || ! -x $repository/target/$profile/delo ]] || server=$repository/target/$profile/delo
done
[[ -n $server ]] || { echo "run.sh: there is no server: build it or name one" >&2; exit 1; }

scratch=$(mktemp -d)
trap 'kill "$serving" 2>/dev/null || true; wait; rm -rf "$scratch"' EXIT
screenshots=${2:-$scratch/screenshots}
DELO_SERVER__LISTEN=127.0.0.1:0 DELO_ADMIN__LISTEN=off DELO_METRICS__LISTEN=off DELO_HTTP__LISTEN=127.0.0.1:0 DELO_LOGGING__FORMAT=json \
    "$server" serve 2> "$scratch/log" &
serving=$!
for _ in $(seq 600); do
    address=$(jq -Rr 'fromjson? | select(.message == "serving").http' "$scratch/log" 2>/dev/null | head -n 1)
    [[ -z $address ]] || break
    sleep 0.1
done
[[ -n $address ]] || { cat "$scratch/log" >&2; echo "run.sh: the server does not serve" >&2; exit 1; }

npm ci --silent --no-audit --no-fund
node check.mjs "http://$address" "$screenshots"
