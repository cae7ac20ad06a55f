#!/usr/bin/env bash
# Makes certificates for a test in FOLDER: ca.pem, and server.pem and server.key for localhost and registry.test.
# Once more, it makes another certificate of the same signer.
#
#     deploy/release/certificates.sh FOLDER
set -euo pipefail
cd "${1:?certificates.sh FOLDER}"
key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2)
[[ -e ca.pem ]] || openssl req -x509 "${key[@]}" -subj /CN=test-ca -keyout ca.key -out ca.pem -addext keyUsage=keyCertSign 2> /dev/null
openssl req -x509 "${key[@]}" -CA ca.pem -CAkey ca.key -subj /CN=localhost -keyout server.key.tmp -out server.pem.tmp \
    -addext basicConstraints=critical,CA:false -addext subjectAltName=DNS:localhost,DNS:registry.test,IP:127.0.0.1 2> /dev/null
mv server.key.tmp server.key
mv server.pem.tmp server.pem
