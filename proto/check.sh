#!/usr/bin/env bash
# Lints the protos, and refuses changes that break callers of the last release, whose descriptor is
# released/delo-v1.binpb. A release writes it anew: buf build --exclude-source-info -o released/delo-v1.binpb
# Needs buf, or npx to fetch it. Another folder of protos can be given as the argument.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
protos=$(cd "${1:-$here}" && pwd)

buf=(buf)
command -v buf >/dev/null || buf=(npx --yes --package @bufbuild/buf@1.75.0 buf)

cd "$protos"
"${buf[@]}" lint --config "$here/buf.yaml"
"${buf[@]}" breaking --config "$here/buf.yaml" --against "$here/released/delo-v1.binpb"
echo "proto: lint holds, and nothing breaks callers of the last release"
