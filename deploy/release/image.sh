#!/usr/bin/env bash
# Builds the last stage of the Dockerfile around a binary and proves the image, without Docker: as the
# image's user, on a read-only root, with TLS and tokens on, the image's own HEALTHCHECK passes; names resolve
# and the roots of TLS are read, with nothing in the image but the binary.
#
#     deploy/release/image.sh BINARY [OUT]     # OUT: a folder that gets delo-image.tar, for docker load
#
# A binary that is linked dynamically is tested with its libraries beside it, and no image is written.
# Needs root on Linux, and buildah, jq, openssl and python3; on Debian or Ubuntu it installs what is missing.
set -euo pipefail
here=$(realpath "$(dirname "$0")")

# skip REASON: what cannot run here is said, and fails where tests must run.
skip() {
    echo "image.sh: SKIPPED: $*" >&2
    [[ ${TESTS_MUST_RUN:-} != 1 ]] || exit 1
    exit 0
}
die() {
    echo "image.sh: $*" >&2
    exit 1
}

# --- Inside: namespaces of its own, the loopback alone for a network.
if [[ ${1:-} == --inside ]]; then
    scratch=$2 root=$2/root
    config() { jq -r "$1" "$scratch/config.json"; }
    ip link set lo up
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount -t tmpfs tmpfs "$root/dev"
    mknod -m 666 "$root/dev/null" c 1 3
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    mount --bind "$scratch/etc" "$root/etc/delo"
    mount --bind "$scratch/resolv.conf" "$root/etc/resolv.conf"
    mount --bind "$scratch/hosts" "$root/etc/hosts"
    mount -o remount,bind,ro "$root"

    mapfile -t environment < <(config '.Env[]')
    # Sets `command` to what a container of the image would run: its user, its environment, VARIABLE=VALUE before --.
    in_container() {
        local variables=()
        while [[ $1 != -- ]]; do variables+=("$1"); shift; done
        shift
        command=(env -i -C / "${environment[@]}" "${variables[@]}" /usr/sbin/chroot --userspec="$(config .User)" "$root" "$@")
    }
    contained() {
        in_container "$@"
        "${command[@]}"
    }
    settings=(DELO_TLS__CERTIFICATE=/etc/delo/server.pem DELO_TLS__KEY=/etc/delo/server.key DELO_AUTH__CLIENTS_FILE=/etc/delo/clients.toml
        DELO_HTTP__LISTEN=0.0.0.0:8080)
    mapfile -t healthcheck < <(config '.Healthcheck.Test[1:][]')
    mapfile -t entrypoint < <(config '.Entrypoint[], .Cmd[]')
    healthy() { contained "${settings[@]}" -- "${healthcheck[@]}" > "$scratch/health" 2>&1; }

    ! contained -- sh -c true 2> /dev/null || die "there is a shell in the image"
    ! healthy || die "the health check passes without a server"
    in_container "${settings[@]}" -- "${entrypoint[@]}"
    "${command[@]}" > "$scratch/log" 2>&1 &
    server=$!
    end=$((SECONDS + $(config '.Healthcheck.StartPeriod / 1e9 | floor')))
    until healthy; do
        kill -0 "$server" 2> /dev/null || die "the server ends: $(tail -n 5 "$scratch/log")"
        ((SECONDS < end)) || die "not healthy within the start period: $(cat "$scratch/health")"
        sleep 0.2
    done
    [[ $(awk '/^Uid:/ { print $2, $5 }' "$root/proc/$server/status") == "65532 65532" ]] || die "the server runs as another user"
    [[ $(awk '/^CapEff:/ { print $2 }' "$root/proc/$server/status") == 0000000000000000 ]] || die "the server has capabilities"
    if contained -- /usr/local/bin/delo classify --server https://localhost:50051 --ca /etc/delo/ca.pem --text pizza > "$scratch/answer" 2>&1; then
        die "a call without a token is answered"
    fi
    grep -qi token "$scratch/answer" || die "a call without a token is refused for another reason: $(cat "$scratch/answer")"
    contained -- /usr/local/bin/delo classify --server https://localhost:50051 --ca /etc/delo/ca.pem --token-file /etc/delo/token --text pizza > "$scratch/answer" 2>&1 ||
        die "a call with a token is refused: $(cat "$scratch/answer")"
    # The ports that the image names are those on which it listens to others.
    listening=$(ss -Hltn | awk '$4 !~ /^127\.|^\[::1\]/ { n = split($4, part, ":"); print part[n] }' | sort -n | xargs)
    exposed=$(config '.ExposedPorts | keys[]' | sed 's#/tcp##' | sort -n | xargs)
    [[ $listening == "$exposed" ]] || die "EXPOSE names $exposed, the server listens to others on $listening"
    contained -- /usr/local/bin/delo admin list --server https://localhost:50052 --ca /etc/delo/ca.pem --token-file /etc/delo/token > "$scratch/answer" 2>&1 ||
        die "the admin service is not on the container's loopback: $(cat "$scratch/answer")"
    memory=$(awk '/^VmRSS:/ { print int($2 / 1024) }' "$root/proc/$server/status")
    kill -TERM "$server"
    wait "$server" || die "on SIGTERM the server ends with $?: $(tail -n 5 "$scratch/log")"
    ! healthy || die "the health check passes after the server's end"

    # A registry by name, over TLS: first unknown to the image's roots, then known.
    python3 "$here/registry.py" "$scratch/registry" "$scratch/etc/server.pem" "$scratch/etc/server.key" > "$scratch/registry.log" 2>&1 &
    registry=$!
    list() { contained -- /usr/local/bin/delo registry list --registry https://registry.test:8443/ > "$scratch/answer" 2>&1; }
    for ((i = 0; i < 50; i++)); do
        [[ -z $(ss -Hltn 'sport = 8443') ]] || break
        sleep 0.1
    done
    ! list || die "a server with an unknown root is trusted"
    grep -qiE 'certificate|issuer' "$scratch/answer" || die "the registry fails for another reason than its root: $(cat "$scratch/answer")"
    cat "$root/etc/ssl/certs/ca-certificates.crt" "$scratch/etc/ca.pem" > "$scratch/roots.pem"
    mount --bind "$scratch/roots.pem" "$root/etc/ssl/certs/ca-certificates.crt"
    list || die "a registry by name over TLS: $(cat "$scratch/answer") $(tail -n 3 "$scratch/registry.log")"
    grep -q objects "$scratch/answer" || die "the registry's list is empty: $(cat "$scratch/answer")"
    kill "$registry"
    echo "image: healthy as $(config .User) on a read-only root with TLS and tokens; ports $exposed; $memory MiB resident; names and roots of TLS are found"
    exit 0
fi

binary=$(realpath "${1:?image.sh BINARY [OUT]}")
out=${2:+$(realpath -m "$2")}
[[ $(id -u) == 0 ]] || skip "needs root, for chroot and namespaces"
declare -A package=([buildah]=buildah [jq]=jq [openssl]=openssl [ip]=iproute2 [python3]=python3)
for tool in "${!package[@]}"; do
    command -v "$tool" > /dev/null && continue
    command -v apt-get > /dev/null || skip "needs $tool"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${package[$tool]}" > /dev/null 2>&1 || skip "$tool can't be installed: ${package[$tool]}"
done
unshare --mount --net --pid --fork true 2> /dev/null || skip "no namespaces can be made here"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/context" "$scratch/root" "$scratch/etc" "$scratch/unpacked"
# A build with debug information is hundreds of megabytes.
objcopy --strip-debug "$binary" "$scratch/delo"
bash "$here/rootfs.sh" --libraries "$scratch/delo" "$scratch/context/rootfs"
static=static
if readelf --program-headers "$binary" | grep -q INTERP; then
    static="dynamic, with its libraries"
    [[ -z $out ]] || die "$binary is linked dynamically: no image is written"
fi

# The last stage as the Dockerfile has it; the stage that it copies from is a folder here.
awk '/^FROM / { stage = "" } { stage = stage $0 "\n" } END { printf "%s", stage }' "$here/../../Dockerfile" > "$scratch/Dockerfile"
grep -q '^FROM scratch$' "$scratch/Dockerfile" || die "the Dockerfile's last stage does not begin with FROM scratch"
store=(buildah --storage-driver vfs --root "$scratch/store" --runroot "$scratch/run")
build() { "${store[@]}" build --isolation chroot --format docker --build-context "build=$scratch/context" -f "$scratch/Dockerfile" -t delo:release "$scratch/etc" > "$scratch/build.log" 2>&1; }
if ! build && grep -q 'not defined: -start-interval' "$scratch/build.log"; then
    # buildah before 1.34 does not know this flag of Docker's.
    sed -i 's/ --start-interval=[0-9a-z]*//' "$scratch/Dockerfile"
    build || true
fi
"${store[@]}" push --quiet delo:release "docker-archive:$scratch/image.tar:delo:release" >> "$scratch/build.log" 2>&1 || die "the last stage does not build: $(tail -n 5 "$scratch/build.log")"
tar -x -C "$scratch/unpacked" -f "$scratch/image.tar"
jq -r '.[0].Layers[]' "$scratch/unpacked/manifest.json" | while read -r layer; do tar -x -C "$scratch/root" -f "$scratch/unpacked/$layer"; done
jq .config "$scratch/unpacked/$(jq -r '.[0].Config' "$scratch/unpacked/manifest.json")" > "$scratch/config.json"

# --- What is in it.
[[ $(jq -r .User "$scratch/config.json") == 65532:65532 ]] || die "the image's user is $(jq -r .User "$scratch/config.json"); Kubernetes' runAsNonRoot needs a number"
[[ $(jq '.Healthcheck.Test | length' "$scratch/config.json") -ge 2 ]] || die "the image has no health check"
odd=$(find "$scratch/root" -perm /6000 -o -type f ! -path "$scratch/root/tmp/*" -perm /022 -o -type d -perm /022 ! -path "$scratch/root/tmp")
[[ -z $odd ]] || die "setuid, or writable by everybody: $odd"
[[ $(stat -c %u:%g:%a "$scratch/root/var/lib/delo") == 65532:65532:700 ]] || die "/var/lib/delo is $(stat -c %u:%g:%a "$scratch/root/var/lib/delo")"
echo "image: $static; $(find "$scratch/root" -type f | wc -l) files, $(du -sb "$scratch/root" | cut -f 1) bytes, $(gzip -1 < "$scratch/image.tar" | wc -c) compressed"

# --- Certificates, a client, a registry, a name server's address.
bash "$here/certificates.sh" "$scratch/etc"
printf '[[client]]\nname = "operator"\nrole = "admin"\ntoken_sha256 = "%s"\n' "$(printf %s secret | sha256sum | cut -d ' ' -f 1)" > "$scratch/etc/clients.toml"
printf secret > "$scratch/etc/token"
chown -R 65532:65532 "$scratch/etc"
chmod 600 "$scratch/etc"/{server.key,token,clients.toml}
# Both are a runtime's to bring.
echo 'nameserver 127.0.0.1' > "$scratch/resolv.conf"
echo '127.0.0.1 localhost' > "$scratch/hosts"
"$binary" registry push "$here/../../models/emoji-mini/partitions/objects.safetensors" --registry "$scratch/registry" --live > /dev/null
# A runtime makes the places to mount at.
mkdir "$scratch/root"/{proc,dev} "$scratch/root/etc/delo"
touch "$scratch/root/etc"/{resolv.conf,hosts}
chmod 755 "$scratch"
unshare --mount --net --pid --fork --kill-child bash "$here/image.sh" --inside "$scratch"
if [[ -n $out ]]; then
    mkdir -p "$out"
    mv "$scratch/image.tar" "$out/delo-image.tar"
fi
