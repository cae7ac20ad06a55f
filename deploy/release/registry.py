"""A name server that says 127.0.0.1 to every question, and a folder served by HTTPS on port 8443, for image.sh.

    python3 registry.py FOLDER CERTIFICATE KEY
"""
import functools
import http.server
import socket
import ssl
import struct
import sys
import threading

folder, certificate, key = sys.argv[1:]


def answer_names(server: socket.socket) -> None:
    while True:
        question, client = server.recvfrom(512)
        # The header has 12 bytes; the name ends with a zero, behind which are type and class.
        end = question.index(b"\0", 12) + 5
        is_address = question[end - 4 : end - 2] == b"\0\1"
        address = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x7f\0\0\1" if is_address else b""
        header = question[:2] + b"\x81\x80" + struct.pack(">4H", 1, int(is_address), 0, 0)
        server.sendto(header + question[12:end] + address, client)


names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
names.bind(("127.0.0.1", 53))
threading.Thread(target=answer_names, args=(names,), daemon=True).start()

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
files = http.server.ThreadingHTTPServer(("127.0.0.1", 8443), functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder))
files.socket = context.wrap_socket(files.socket, server_side=True)
files.serve_forever()
