#!/usr/bin/env bash
# Lays out what goes beside the binary in packages and archives, below OUT as below /usr: man pages and
# completions, where the binary can write them, and the documents.
#
#     deploy/release/extras.sh BINARY OUT
set -euo pipefail
binary=$(realpath "${1:?extras.sh BINARY OUT}")
out=$(realpath -m "${2:?extras.sh BINARY OUT}")
cd "$(dirname "$0")/../.."

mkdir -p "$out/share/doc/delo/examples"
install -m 644 README.md THIRD_PARTY_NOTICES.md "$out/share/doc/delo/"
install -m 644 migrations-free-config/default.toml migrations-free-config/examples/*.toml "$out/share/doc/delo/examples/"

# The commands may be absent in an older binary, which is then packaged without these files.
if "$binary" man --help > /dev/null 2>&1; then
    mkdir -p "$out/share/man/man1"
    "$binary" man --out "$out/share/man/man1" > /dev/null
    # Debian's policy; the same bytes every time.
    find "$out/share/man" -name '*.1' -exec gzip -9n {} +
else
    echo "extras.sh: no man pages: this binary has no command man" >&2
fi
if "$binary" completions --help > /dev/null 2>&1; then
    completion() { mkdir -p "$(dirname "$out/share/$2")" && "$binary" completions "$1" > "$out/share/$2"; }
    completion bash bash-completion/completions/delo
    completion zsh zsh/vendor-completions/_delo
    completion fish fish/vendor_completions.d/delo.fish
else
    echo "extras.sh: no completions: this binary has no command completions" >&2
fi
find "$out" -type d -exec chmod 755 {} +
find "$out" -type f -exec chmod 644 {} +
