#!/usr/bin/env bash
# Writes what is in the binary, OUT, as CycloneDX 1.5 in JSON: the crates that are linked into it for TARGET (none
# that only run at build time), the embedded model, and, where BINARY is given, its SHA-256.
#
#     deploy/release/sbom.sh OUT [TARGET [BINARY]]
#
# Needs cargo-cyclonedx (cargo install --locked cargo-cyclonedx) and jq.
set -euo pipefail
out=$(realpath -m "${1:?sbom.sh OUT [TARGET [BINARY]]}")
target=${2:-$(uname -m)-unknown-linux-musl}
binary=${3:+$(realpath "$3")}
cd "$(dirname "$0")/../.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# cargo-cyclonedx writes a file beside every manifest of a workspace: in a copy, not in the sources.
tar -c Cargo.toml Cargo.lock src crates load-tests | tar -x -C "$scratch"
cargo cyclonedx --quiet --manifest-path "$scratch/Cargo.toml" --target "$target" --format json --spec-version 1.5 \
    --describe binaries --no-build-deps
# Paths of this machine are nobody else's.
sed -i "s#path+file://$scratch#path+file:///delo#g" "$scratch/delo_bin.cdx.json"
cargo tree --locked --package delo --target "$target" --edges normal,no-proc-macro --prefix none --format '{p}' |
    awk '{ print $1 "@" substr($2, 2) }' | sort -u > "$scratch/linked"
(cd models/emoji-mini && find . -type f ! -name '.*' -printf '%P\0' | sort -z | xargs -0 sha256sum) > "$scratch/model"

# It lists crates that procedural macros use too; those are not linked.
jq --rawfile linked "$scratch/linked" --rawfile model "$scratch/model" --arg digest "${binary:+$(sha256sum "$binary" | cut -d ' ' -f 1)}" '
    ($linked | split("\n") | map(select(. != "")) | INDEX(.)) as $in
    | def linked: $in[.name + "@" + .version] != null;
    .components |= map(select(linked))
    | ([.components[]."bom-ref", .metadata.component."bom-ref"] | INDEX(.)) as $refs
    | .dependencies |= map(select($refs[.ref]) | if .dependsOn then .dependsOn |= map(select($refs[.])) else . end)
    | .components += [{
        type: "machine-learning-model", "bom-ref": "delo:emoji-mini", name: "emoji-mini", version: .metadata.component.version, scope: "required",
        description: "The embedded model and its partitions. Works that it derives from, and their licences: THIRD_PARTY_NOTICES.md",
        components: [$model | split("\n")[] | select(. != "") | capture("^(?<content>[0-9a-f]+) [ *](?<name>.*)$")
            | {type: "data", name, hashes: [{alg: "SHA-256", content}]}]}]
    | if $digest != "" then .metadata.component.hashes = [{alg: "SHA-256", content: $digest}] else . end
    | (.components[], .metadata.component | .purl | strings) |= sub("[?].*"; "")
    ' "$scratch/delo_bin.cdx.json" > "$scratch/out.json"
# Nothing that is linked is left out.
missing=$(comm -23 "$scratch/linked" <(jq -r '(.components[], .metadata.component, .metadata.component.components[]?) | .name + "@" + (.version // "")' "$scratch/out.json" | sort -u))
[[ -z $missing ]] || { echo "sbom.sh: linked but not listed: $missing" >&2; exit 1; }
mv "$scratch/out.json" "$out"
echo "$out: $(jq '[.components[] | select(.type == "library")] | length' "$out") crates for $target"
