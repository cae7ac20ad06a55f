#!/usr/bin/env bash
# Proves the Debian package and the unit under a real systemd: systemd-nspawn boots a copy of this machine's file
# system (an overlay, of which nothing stays) with its own network, and in it the package is installed, used,
# upgraded, removed and purged. Where no container can be had, systemd's own checks of the unit run alone.
#
#     deploy/release/systemd.sh DEB
#
# Needs root on Debian or Ubuntu; installs systemd-container where it is missing.
set -euo pipefail
deb=$(realpath "${1:?systemd.sh DEB}")
here=$(realpath "$(dirname "$0")")

skip() {
    echo "systemd.sh: SKIPPED: $*" >&2
    [[ ${TESTS_MUST_RUN:-} != 1 ]] || exit 1
    exit 0
}

[[ $(id -u) == 0 ]] || skip "needs root"
command -v dpkg > /dev/null || skip "this is no Debian: dpkg is missing"
# What somebody installed is not ours to remove, also in a copy: its user and folders would hide faults of the package.
if dpkg-query --show delo > /dev/null 2>&1 || getent passwd delo > /dev/null || [[ -e /etc/delo || -e /var/lib/delo ]]; then
    skip "delo is installed on this machine"
fi
for tool in systemd-nspawn systemd-analyze openssl curl adduser; do
    command -v "$tool" > /dev/null && continue
    [[ $tool != systemd-nspawn ]] || tool=systemd-container
    [[ $tool != systemd-analyze ]] || tool=systemd
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$tool" > /dev/null 2>&1 || skip "$tool can't be installed"
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# A unit that is installed by hand, its program replaced by one that exists.
sed "s#/usr/local/bin/delo#$(command -v true)#" "$here/../systemd/delo.service" > "$scratch/delo.service"
systemd-analyze verify --man=no "$scratch/delo.service"
# From 0, the best, to 100: a change that opens the unit must say why here.
systemd-analyze security --offline=true --threshold=15 "$scratch/delo.service" > "$scratch/security" || { cat "$scratch/security" && exit 1; }
tail -n 1 "$scratch/security"

mkdir "$scratch/layers"
# All mounts end with this namespace.
status=0
# shellcheck disable=SC2016 # The variables are the inner shell's.
timeout --kill-after=20 400 unshare --mount --propagation private bash -euo pipefail -c '
    scratch=$1 here=$2 deb=$3 layers=$1/layers
    mount -t tmpfs tmpfs "$layers"
    mkdir "$layers"/{upper,work,root}
    mount -t overlay overlay -o "lowerdir=/,upperdir=$layers/upper,workdir=$layers/work" "$layers/root"
    test=$layers/root/delo-test
    mkdir "$test"
    cp "$deb" "$test/delo.deb"
    cp "$here/systemd-guest.sh" "$here/certificates.sh" "$test/"
    cp "$here/../../models/emoji-mini/partitions/objects.safetensors" "$test/"
    # Images of containers forbid that services start.
    rm -f "$layers/root/usr/sbin/policy-rc.d"
    cat > "$layers/root/etc/systemd/system/delo-test.service" <<UNIT
[Unit]
After=sysinit.target
Requires=sysinit.target
FailureAction=exit-force
FailureActionExitStatus=1
SuccessAction=exit-force
SuccessActionExitStatus=0
[Service]
Type=oneshot
TimeoutStartSec=360
Environment=HOME=/root DEBIAN_FRONTEND=noninteractive
ExecStart=/bin/bash /delo-test/systemd-guest.sh /delo-test
StandardOutput=append:/delo-test/output
StandardError=append:/delo-test/output
UNIT
    status=0
    systemd-nspawn --quiet --register=no --keep-unit --private-network --link-journal=no --console=pipe --directory="$layers/root" --boot \
        systemd.unit=delo-test.service systemd.log_target=console < /dev/null > "$scratch/console" 2>&1 || status=$?
    cp "$test/output" "$scratch/output" 2> /dev/null || true
    exit "$status"
' systemd.sh "$scratch" "$here" "$deb" || status=$?
if [[ ! -s $scratch/output ]]; then
    tail -n 20 "$scratch/console" >&2 || true
    skip "systemd does not boot in a container here"
fi
cat "$scratch/output"
[[ $status == 0 ]] || { tail -n 5 "$scratch/console" >&2; echo "systemd.sh: the test in the container ends with $status" >&2; exit 1; }
