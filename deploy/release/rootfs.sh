#!/usr/bin/env bash
# Lays out the file system of the container image in OUT: a static binary, the roots of TLS, one user, a home and
# /tmp, no shell. The Dockerfile runs it; it needs no Docker.
#
#     deploy/release/rootfs.sh [--libraries] BINARY OUT
#
# --libraries takes a dynamic binary too and copies its libraries, so that a test needs no build of its own.
# As root, /var/lib/delo belongs to the image's user. CA_CERTIFICATES: the bundle of roots, where it is not Debian's.
set -euo pipefail
libraries=
if [[ ${1:-} == --libraries ]]; then
    libraries=yes
    shift
fi
binary=$(realpath "${1:?rootfs.sh BINARY OUT}")
out=$(realpath -m "${2:?rootfs.sh BINARY OUT}")
certificates=${CA_CERTIFICATES:-/etc/ssl/certs/ca-certificates.crt}
cd "$(dirname "$0")/../.."

# Without a loader in the image, a dynamic binary fails with "no such file or directory".
dynamic=$(readelf --program-headers "$binary" | grep INTERP || true)
if [[ -n $dynamic && -z $libraries ]]; then
    echo "rootfs.sh: $binary is linked dynamically: build it with deploy/release/build.sh" >&2
    exit 1
fi
[[ ! -e $out ]] || { echo "rootfs.sh: $out exists" >&2; exit 1; }
[[ -s $certificates ]] || { echo "rootfs.sh: no CA certificates in $certificates: install ca-certificates" >&2; exit 1; }

install -d -m 755 "$out" "$out/etc" "$out/var/lib"
install -d -m 1777 "$out/tmp"
install -d -m 700 "$out/var/lib/delo"
[[ $(id -u) != 0 ]] || chown 65532:65532 "$out/var/lib/delo"
install -D -m 755 "$binary" "$out/usr/local/bin/delo"
if [[ -n $dynamic ]]; then
    ldd "$binary" | grep -oE '/[^ ]+' | sort -u | while read -r library; do install -D -m 755 "$library" "$out$library"; done
fi
install -D -m 644 "$certificates" "$out/etc/ssl/certs/ca-certificates.crt"
install -D -m 644 -t "$out/usr/share/doc/delo" LICENSE THIRD_PARTY_NOTICES.md README.md
# The user by name, and how names of hosts are found.
printf 'root:x:0:0:root:/nonexistent:/sbin/nologin\ndelo:x:65532:65532:delo:/var/lib/delo:/sbin/nologin\n' > "$out/etc/passwd"
printf 'root:x:0:\ndelo:x:65532:\n' > "$out/etc/group"
printf 'hosts: files dns\n' > "$out/etc/nsswitch.conf"
chmod 644 "$out"/etc/{passwd,group,nsswitch.conf}
echo "$out: $(du --apparent-size -sb "$out" | cut -f 1) bytes"
