#!/usr/bin/env bash
# Classifies an image, a text or both, with grpcurl, or with curl where --http names the server's HTTP port. Prints the
# answer as JSON. Needs jq, and runs with the bash and base64 of Linux and macOS.
set -euo pipefail

usage() {
    cat >&2 <<'END'
usage: classify.sh [--image FILE] [--text TEXT] [--task TASK] [--top-k N]
                   [--server HOST:PORT | --http URL] [--ca FILE] [--timeout SECONDS]
The server is 127.0.0.1:50051, and the timeout 30 s, unless given. --ca: the connection is TLS, with a certificate that
is signed by those in FILE (PEM). The environment variable DELO_TOKEN holds the token, if the server asks for one.
END
    exit 2
}

server=127.0.0.1:50051 http="" ca="" timeout=30 image="" request='{}'

# Sets a field of the request to a string, or with --argjson to a number.
set_field() { request=$(jq -c "$1" value "$3" ". + {$2: \$value}" <<<"$request"); }

while [[ $# -gt 0 ]]; do
    [[ $# -ge 2 ]] || usage
    case $1 in
    --image) image=$2 ;;
    --text) set_field --arg text "$2" ;;
    --task) set_field --arg task "$2" ;;
    --top-k) set_field --argjson topK "$2" ;;
    --server) server=$2 ;;
    --http) http=$2 ;;
    --ca) ca=$2 ;;
    --timeout) timeout=$2 ;;
    *) usage ;;
    esac
    shift 2
done

# The image goes through a pipe: it may be longer than an argument of a command may be. The options of base64 that
# make it write one line differ between systems.
body() {
    if [[ -n $image ]]; then
        base64 <"$image" | tr -d '\n' | jq -Rsc --argjson request "$request" '$request + {image: .}'
    else
        echo "$request"
    fi
}

# The header with the token, for curl: its arguments can be listed by every user of the machine.
authorization() { [[ -z ${DELO_TOKEN:-} ]] || echo "authorization: Bearer $DELO_TOKEN"; }

if [[ -n $http ]]; then
    arguments=(--silent --show-error --fail-with-body --max-time "$timeout" --header "content-type: application/json")
    [[ -z $ca ]] || arguments+=(--cacert "$ca")
    body | curl "${arguments[@]}" --header @<(authorization) --data-binary @- "${http%/}/delo.v1.Classifier/Classify"
else
    arguments=(-max-time "$timeout" -d @)
    if [[ -n $ca ]]; then arguments+=(-cacert "$ca"); else arguments+=(-plaintext); fi
    # shellcheck disable=SC2016 # grpcurl itself expands the variable.
    [[ -z ${DELO_TOKEN:-} ]] || arguments+=(-expand-headers -H 'authorization: Bearer ${DELO_TOKEN}')
    body | grpcurl "${arguments[@]}" "$server" delo.v1.Classifier/Classify
fi
