#!/usr/bin/env bash
# Tests classify.sh: with grpcurl against a server (DELO_BINARY, else target/release/delo or target/debug/delo), and
# with curl against a server of this script that shows what it received, and against DELO_HTTP, the HTTP port of a
# running server, where that is set. Needs grpcurl, curl, jq, openssl and python3.
set -euo pipefail
cd "$(dirname "$0")"
repository=$(cd ../.. && pwd)
peach=$repository/data/emoji-cmml/images/1f351-noto.png

binary=${DELO_BINARY:-}
for profile in release debug; do
    [[ -n $binary || ! -x $repository/target/$profile/delo ]] || binary=$repository/target/$profile/delo
done
[[ -n $binary ]] || { echo "test.sh: there is no server: build it or set DELO_BINARY" >&2; exit 1; }
http_of_server=${DELO_HTTP:-}
unset DELO_BINARY DELO_HTTP DELO_TOKEN

scratch=$(mktemp -d)
processes=()
trap 'kill ${processes[@]+"${processes[@]}"} 2>/dev/null || true; wait; rm -rf "$scratch"' EXIT

fail() { echo "test.sh: $*" >&2; exit 1; }
# expect NAME EXPECTED ACTUAL
expect() { [[ $2 == "$3" ]] || fail "$1: expected $2, got $3"; echo "ok: $1"; }
# Waits for the first line of a file that jq selects.
wait_for() {
    for _ in $(seq 300); do
        found=$(jq -Rr "fromjson? | $2" "$1" 2>/dev/null | head -n 1)
        [[ -z $found ]] || { echo "$found"; return; }
        sleep 0.1
    done
    fail "nothing in $1 within 30 s"
}
# serve NAME SETTING=VALUE...: starts a server and sets `address`.
serve() {
    local log=$scratch/$1.log
    env DELO_SERVER__LISTEN=127.0.0.1:0 DELO_ADMIN__LISTEN=off DELO_METRICS__LISTEN=off DELO_LOGGING__FORMAT=json "${@:2}" \
        "$binary" serve 2>"$log" &
    processes+=($!)
    address=$(wait_for "$log" 'select(.message == "serving").classifier')
}

serve plain
text='a "slice" of \ pizza, with
cheese'
expect "a text with quotes and lines" food-prepared "$(./classify.sh --server "$address" --text "$text" --top-k 1 | jq -r '.scores[].label')"
expect "an image" PRESENT "$(./classify.sh --server "$address" --image "$peach" | jq -r .modalities.image)"
expect "both" food-fruit "$(./classify.sh --server "$address" --image "$peach" --text peach | jq -r '.scores[0].label')"
if ./classify.sh --server "$address" --text "a rocket" --task space 2>"$scratch/error"; then fail "a task that is not loaded"; fi
expect "a task that is not loaded" 1 "$(grep -c NotFound "$scratch/error")"
if ./classify.sh --image no-such-file --server "$address" 2>/dev/null; then fail "an image that is not there"; fi
echo "ok: an image that is not there"
# More than an argument of a command may have.
head -c 400000 /dev/urandom >"$scratch/large"
if ./classify.sh --server "$address" --image "$scratch/large" 2>"$scratch/error"; then fail "400 kB that are no image"; fi
expect "400 kB that are no image" 1 "$(grep -c InvalidArgument "$scratch/error")"

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost -keyout "$scratch/key.pem" -out "$scratch/cert.pem" 2>/dev/null
export DELO_TOKEN=a-token
printf '[[client]]\nname = "shop"\nrole = "classify"\ntoken_sha256 = "%s"\n' \
    "$(printf %s "$DELO_TOKEN" | openssl dgst -sha256 -r | cut -d ' ' -f 1)" >"$scratch/clients.toml"
chmod 600 "$scratch"/*
serve secured DELO_TLS__CERTIFICATE="$scratch/cert.pem" DELO_TLS__KEY="$scratch/key.pem" DELO_AUTH__CLIENTS_FILE="$scratch/clients.toml"
secured=localhost:${address##*:}
expect "TLS and a token" food-prepared "$(./classify.sh --server "$secured" --ca "$scratch/cert.pem" --text pizza | jq -r '.scores[0].label')"
if DELO_TOKEN=another ./classify.sh --server "$secured" --ca "$scratch/cert.pem" --text pizza 2>"$scratch/error"; then fail "a wrong token"; fi
expect "a wrong token" 1 "$(grep -c Unauthenticated "$scratch/error")"

# Answers with what it received; to a request without a token, with an error as the Connect protocol has them.
python3 - >"$scratch/http.log" <<'END' &
import json
from http.server import BaseHTTPRequestHandler, HTTPServer

class Echo(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        known = "authorization" in self.headers
        answer = {"path": self.path, "headers": {key.lower(): value for key, value in self.headers.items()}, "body": body}
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(json.dumps(answer if known else {"code": "unauthenticated"}).encode())

    def log_message(self, *arguments):
        pass

server = HTTPServer(("127.0.0.1", 0), Echo)
print(json.dumps({"port": server.server_port}), flush=True)
server.serve_forever()
END
processes+=($!)
http=http://127.0.0.1:$(wait_for "$scratch/http.log" .port)
./classify.sh --http "$http" --image "$scratch/large" --text "$text" --task t --top-k 2 >"$scratch/received"
expect "the path of HTTP" /delo.v1.Classifier/Classify "$(jq -r .path "$scratch/received")"
expect "the token of HTTP" "Bearer a-token" "$(jq -r .headers.authorization "$scratch/received")"
expect "the type of HTTP" application/json "$(jq -r '.headers["content-type"]' "$scratch/received")"
expect "the fields of HTTP" "$(jq -cn --arg text "$text" '{text: $text, task: "t", topK: 2}')" "$(jq -c '.body | del(.image)' "$scratch/received")"
jq -j .body.image "$scratch/received" | openssl base64 -d -A | cmp - "$scratch/large" || fail "the image of HTTP"
echo "ok: the image of HTTP"
unset DELO_TOKEN
if ./classify.sh --http "$http" --text pizza >"$scratch/error"; then fail "an error of HTTP"; fi
expect "an error of HTTP" unauthenticated "$(jq -r .code "$scratch/error")"

if [[ -n $http_of_server ]]; then
    expect "a server's HTTP port" food-fruit "$(./classify.sh --http "$http_of_server" --image "$peach" --text peach | jq -r '.scores[0].label')"
else
    echo "skipped: a server's HTTP port (DELO_HTTP is not set)"
fi
