#!/usr/bin/env bash
# The part of systemd.sh that runs in its container: one life of the package. FOLDER holds delo.deb, a partition
# and certificates.sh.
set -euo pipefail
cd "${1:?systemd-guest.sh FOLDER}"
[[ $(readlink /proc/1/exe) == */systemd ]] || { echo "systemd-guest.sh: not in a container of systemd.sh" >&2; exit 1; }

die() {
    echo "systemd: FAILED: $*" >&2
    systemctl status --no-pager --lines=20 delo >&2 || true
    exit 1
}
passed() { echo "systemd: $*"; }
property() { systemctl show --property "$1" --value delo.service; }
wait_for() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" > /dev/null 2>&1; do
        ((SECONDS < end)) || die "not within the time: $*"
        sleep 0.1
    done
}
healthy() { DELO_CONFIG=/etc/delo/delo.toml delo health; }
is() { # WHAT FOUND EXPECTED
    [[ $2 == "$3" ]] || die "$1 is \"$2\", not \"$3\""
}

# --- Installed: it serves.
named() { find /etc /usr /var /lib/systemd -xdev -name '*delo*' ! -path '/var/log/*' | sort -u; }
named > before
dpkg -i delo.deb > dpkg.log 2>&1 || die "dpkg -i: $(cat dpkg.log)"
is "the installed service" "$(systemctl is-enabled delo) $(systemctl is-active delo)" "enabled active"
wait_for 60 healthy
delo classify --text pizza > answer || die "no answer"
is "version" "$(delo --version)" "delo $(dpkg-query -W -f '${Version}' delo | sed 's/-[^-]*$//')"
id=$(id -u delo)
((id < 1000)) || die "delo is no system user: $id"
is "the shell of the user" "$(getent passwd delo | cut -d : -f 7)" /usr/sbin/nologin
main=$(property MainPID)
is "the user of the process" "$(awk '/^Uid:/ { print $2 }' "/proc/$main/status")" "$id"
is "its capabilities" "$(awk '/^Cap(Eff|Prm|Bnd):/ { print $2 }' "/proc/$main/status" | sort -u)" 0000000000000000
is "its program" "$(readlink "/proc/$main/exe")" /usr/bin/delo
is "/etc/delo" "$(stat -c %U:%G:%a /etc/delo)" root:delo:750
is "/etc/delo/delo.toml" "$(stat -c %U:%G:%a /etc/delo/delo.toml)" root:delo:640
is "/var/lib/delo" "$(stat -c %U:%G:%a /var/lib/delo)" delo:delo:750
is "the configuration files" "$(dpkg-query -W -f '${Conffiles}' delo | awk 'NF { print $1 }')" /etc/delo/delo.toml
grep -q 'state_dir' /etc/delo/delo.toml || die "the settings name no state directory"
[[ -d /var/lib/delo/delo-state ]] || die "the settings of /etc/delo/delo.toml are not used: there is no state"
passed "installed: user $id, no capabilities, settings used, answers"
systemd-analyze verify --man=no delo.service || die "the installed unit has faults"
exposure=$(systemd-analyze security --threshold=15 delo.service) || die "$(tail -n 1 <<< "$exposure")"
passed "$(tail -n 1 <<< "$exposure")"
if delo man --help > /dev/null 2>&1; then
    man --path delo > /dev/null 2>&1 || [[ -e /usr/share/man/man1/delo.1.gz ]] || die "no man page"
    [[ -s /usr/share/bash-completion/completions/delo ]] || die "no completions"
    passed "man page and completions are there"
fi

# --- A loaded partition outlives a restart.
delo admin load objects.safetensors > /dev/null || die "a partition is not loaded"
versions() { delo admin list | awk '$1 == "objects"'; }
before=$(versions)
systemctl restart delo
wait_for 60 healthy
is "what is live after a restart" "$(versions | awk '{ print $1, $2 }')" "$(awk '{ print $1, $2 }' <<< "$before")"
passed "what was loaded outlives a restart"

# --- TLS and clients; a reload reads a certificate again and cuts nothing.
mkdir -p /etc/delo/tls
bash certificates.sh /etc/delo/tls
printf '[[client]]\nname = "operator"\nrole = "admin"\ntoken_sha256 = "%s"\n' "$(printf %s secret | sha256sum | cut -d ' ' -f 1)" > /etc/delo/clients.toml
printf secret > token
cp /etc/delo/delo.toml original.toml
cat >> /etc/delo/delo.toml <<'SETTINGS'
[tls]
certificate = "/etc/delo/tls/server.pem"
key = "/etc/delo/tls/server.key"
reload_seconds = 3600.0
[auth]
clients_file = "/etc/delo/clients.toml"
[http]
listen = "127.0.0.1:8080"
SETTINGS
readable() {
    chgrp delo /etc/delo/tls/server.key /etc/delo/clients.toml
    chmod 640 /etc/delo/tls/server.key /etc/delo/clients.toml
}
readable
systemctl restart delo
wait_for 60 healthy
client=(--server https://localhost:50051 --ca /etc/delo/tls/ca.pem)
delo classify "${client[@]}" --token-file token --text pizza > answer || die "TLS and token: no answer"
! delo classify "${client[@]}" --text pizza > answer 2>&1 || die "answered without a token"
serial() { openssl s_client -connect localhost:50051 -alpn h2 < /dev/null 2> /dev/null | openssl x509 -noout -serial; }
main=$(property MainPID)
bash certificates.sh /etc/delo/tls
readable
[[ $(serial) != "$(openssl x509 -noout -serial -in /etc/delo/tls/server.pem)" ]] || die "the test's certificates do not differ"
systemctl reload delo
replaced() { [[ $(serial) == "$(openssl x509 -noout -serial -in /etc/delo/tls/server.pem)" ]]; }
wait_for 10 replaced
is "the process after a reload" "$(property MainPID)" "$main"
passed "healthy with TLS and tokens; a reload changes the certificate and not the process"

# --- A stop answers the call that is on its way.
# As many samples as a call may have, long texts: some seconds of work.
text=$(printf 'slice of pizza with cheese %.0s' {1..12})
seq 1000 | awk -v text="$text" 'BEGIN { printf "{\"requests\": [" } { printf "%s{\"text\": \"%s%d\"}", (NR > 1 ? "," : ""), text, $1 } END { print "]}" }' > batch.json
curl --silent --show-error --cacert /etc/delo/tls/ca.pem -H 'authorization: Bearer secret' -H 'content-type: application/json' \
    --data-binary @batch.json https://localhost:8080/delo.v1.Classifier/ClassifyBatch -o batch.answer -w '%{http_code}' > batch.status 2> batch.error &
call=$!
sleep 0.4
kill -0 "$call" 2> /dev/null || die "the call has ended too soon to prove anything: $(cat batch.status batch.error) $(head -c 300 batch.answer)"
systemctl stop delo
wait "$call" || die "a call on its way was cut by a stop: $(cat batch.error)"
is "the call on its way" "$(cat batch.status)" 200
is "the samples answered" "$(grep -o '"response"' batch.answer | wc -l)" 1000
is "the end of the service" "$(property Result) $(property ExecMainStatus)" "success 0"
journalctl --no-pager --unit delo -o cat | grep -q draining || die "the journal does not say that it drains"
passed "a stop answers the call on its way, then ends with 0"

# --- A crash: it comes back by itself.
systemctl start delo
wait_for 60 healthy
main=$(property MainPID)
kill -KILL "$main"
restarted() { [[ $(property NRestarts) == 1 && $(property MainPID) != "$main" && $(property MainPID) != 0 ]]; }
wait_for 20 restarted
wait_for 60 healthy
passed "killed, it is started again"

# --- Once more the same version: what an administrator changed stays.
chmod 600 /etc/delo/clients.toml
chgrp root /etc/delo/clients.toml
systemctl stop delo
dpkg --force-confdef --force-confold -i delo.deb > dpkg.log 2>&1 || die "the second dpkg -i: $(cat dpkg.log)"
grep -q clients_file /etc/delo/delo.toml || die "an upgrade takes the administrator's settings away"
is "a file of the administrator's" "$(stat -c %U:%G:%a /etc/delo/clients.toml)" root:root:600
readable
cp original.toml /etc/delo/delo.toml
systemctl restart delo
wait_for 60 healthy
passed "an upgrade leaves settings alone"

# --- Removed: settings and state stay. Purged: they go, but not what is the administrator's own.
dpkg -r delo > dpkg.log 2>&1 || die "dpkg -r: $(cat dpkg.log)"
! systemctl is-active --quiet delo || die "a removed service runs"
[[ ! -e /usr/bin/delo && ! -e /usr/lib/systemd/system/delo.service ]] || die "dpkg -r leaves files of the program"
[[ -e /etc/delo/delo.toml && -d /var/lib/delo/delo-state ]] || die "dpkg -r takes settings or state away"
dpkg -P delo > dpkg.log 2>&1 || die "dpkg -P: $(cat dpkg.log)"
[[ ! -e /etc/delo/delo.toml && ! -e /var/lib/delo ]] || die "dpkg -P leaves settings or state"
[[ -e /etc/delo/clients.toml && -e /etc/delo/tls/server.key ]] || die "dpkg -P takes the administrator's own files away"
left=$(comm -13 before <(named))
is "what is left of it" "$left" /etc/delo
passed "removed: settings, state and user stay; purged: the administrator's own files and the user stay"
