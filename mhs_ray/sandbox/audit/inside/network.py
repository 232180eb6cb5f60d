"""What the container reaches: its slide and the results gateway, by the proxy, and nothing else by any way."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from pathlib import Path
from typing import Any

from mhs_ray.sandbox.audit.inside.common import Probe, Verdict, listed

_PROXY = ("127.0.0.1", 3128)
_METADATA = ("169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200", "fd00:ec2::254")
_INTERNET = (("1.1.1.1", 443), ("8.8.8.8", 53), ("93.184.215.14", 80), ("2606:4700:4700::1111", 443))


def _connect(address: str, port: int, timeout_s: float = 1.0) -> int:
    """Return 0 when a connection was made, else its errno."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as client:
        client.settimeout(timeout_s)
        try:
            return client.connect_ex((address, port))
        except OSError as error:
            return error.errno or errno.EIO


def _reached(targets: list[tuple[str, int]]) -> list[str]:
    return [f"{address}:{port}" for address, port in targets if _connect(address, port) == 0]


def _verdict(reached: list[str], tried: int) -> Verdict:
    return not reached, f"reached: {listed(reached)}" if reached else f"none of {tried} targets is reached"


def interfaces(_: dict[str, Any]) -> Verdict:
    """There is no network but its own loopback."""
    names = [name for _, name in socket.if_nameindex()]
    routes = Path("/proc/net/route").read_text().splitlines()[1:]
    return names == ["lo"] and not routes, f"interfaces {names}, {len(routes)} routes"


def internet(_: dict[str, Any]) -> Verdict:
    """No direct way out, in neither version of IP."""
    return _verdict(_reached(list(_INTERNET)), len(_INTERNET))


def metadata(_: dict[str, Any]) -> Verdict:
    """The addresses at which clouds hand out credentials."""
    targets = [(address, 80) for address in _METADATA]
    return _verdict(_reached(targets), len(targets))


def node_ports(given: dict[str, Any]) -> Verdict:
    """Whatever listens on the node, Ray and the registry too, at its loopback and its other addresses."""
    own = {3128, 80, 443}
    ports = [port for port in given["node_ports"] if port not in own]
    targets = [(address, port) for address in ("127.0.0.1", "::1", *given["node_addresses"]) for port in ports]
    return _verdict(_reached(targets), len(targets))


def own_loopback(_: dict[str, Any]) -> Verdict:
    """Its loopback has the sandbox's three ports and no other."""
    found = [port for port in range(1, 20000) if _connect("127.0.0.1", port, 0.2) == 0]
    return set(found) <= {80, 443, 3128}, f"open ports: {found}"


def names(_: dict[str, Any]) -> Verdict:
    """No name service: neither the system's resolver nor a question sent by hand gets an answer."""
    answered = []
    for name in ("example.com", "metadata.google.internal", "localhost.localdomain.example"):
        try:
            socket.getaddrinfo(name, 443)
        except OSError:
            continue
        answered.append(name)
    question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01"
    for server in ("127.0.0.1", "127.0.0.11", "127.0.0.53", "8.8.8.8"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(0.3)
            try:
                client.connect((server, 53))
                client.send(question)
                client.recv(512)
            except OSError:
                continue
            answered.append(server)
    return not answered, f"answered: {listed(answered)}" if answered else "no answer"


def _ask(request: bytes, port: int = 3128) -> str:
    """Return the first line that a port of the sandbox answers."""
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.settimeout(20)
        client.sendall(request)
        answer = b""
        try:
            while b"\r\n" not in answer and (piece := client.recv(4096)):
                answer += piece
        except OSError:
            pass
    return answer.partition(b"\r\n")[0].decode("latin-1") or "(closed)"


def _all_denied(requests: dict[str, bytes]) -> Verdict:
    answers = {name: _ask(request) for name, request in requests.items()}
    open_ = {name: answer for name, answer in answers.items() if answer != "(closed)" and " 40" not in answer[:13]}
    return not open_, f"let through: {open_}" if open_ else f"refused: {', '.join(answers)}"


def proxy_connect(given: dict[str, Any]) -> Verdict:
    """CONNECT to anything that is not on the job's list."""
    targets = [
        "example.com:443", "169.254.169.254:80", "127.0.0.1:22", "[::1]:22", "[fd00:ec2::254]:80", "localhost:80",
        "metadata.google.internal:80", "2130706433:80", "0x7f000001:80", f"{given['results_host']}:22",
        f"user:pass@{given['results_host']}:443", f"{given['results_host']}@example.com:443",
        f"{given['results_host']}.example.com:443", f"127.0.0.1:{given['witness_port']}",
    ]  # fmt: skip
    return _all_denied({t: f"CONNECT {t} HTTP/1.1\r\nHost: {t}\r\n\r\n".encode() for t in targets})


def proxy_urls(given: dict[str, Any]) -> Verdict:
    """Plain requests by their whole URL, or with a Host header that says otherwise."""
    host, witness = given["results_host"], given["witness_port"]
    lines = {
        "metadata": ("http://169.254.169.254/latest/meta-data/", "169.254.169.254"),
        "loopback": (f"http://127.0.0.1:{witness}/", f"127.0.0.1:{witness}"),
        "user info": (f"http://{host}@127.0.0.1:{witness}/", host),
        "other host header": ("/", f"127.0.0.1:{witness}"),
        "file": ("file:///etc/passwd", host), "no host": ("*", host),
    }  # fmt: skip
    return _all_denied({name: f"GET {t} HTTP/1.1\r\nHost: {h}\r\n\r\n".encode() for name, (t, h) in lines.items()})


def server_names(given: dict[str, Any]) -> Verdict:
    """A TLS hello that names another host than the list has, straight or behind an allowed CONNECT."""
    through = []
    for name in ("example.com", "metadata.google.internal", "localhost"):
        for behind in (False, True):
            with socket.create_connection(_PROXY if behind else ("127.0.0.1", 443), 10) as client:
                client.settimeout(20)
                if behind:
                    host = f"{given['results_host']}:443"
                    client.sendall(f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                    client.recv(4096)
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                try:
                    context.wrap_socket(client, server_hostname=name).close()
                except OSError:
                    continue
                through.append(f"{name}{' behind CONNECT' if behind else ''}")
    return not through, f"let through: {through}" if through else "refused"


def results_paths(given: dict[str, Any]) -> Verdict:
    """Of the platform's API only the results gateway, by no trick of the path."""
    host = given["results_host"]
    paths = ("/", "/api/v1/jobs", "/api/v3/../v1/jobs", "/api/v3/%2e%2e/v1/jobs", "/api//v3/x", "//api/v3/x")
    requests = {p: f"GET {p} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode() for p in paths}
    answers = {path: _ask(request, 80) for path, request in requests.items()}
    open_ = {path: answer for path, answer in answers.items() if " 403" not in answer[:13]}
    return not open_, f"let through: {open_}" if open_ else f"refused: {', '.join(paths)}"


def slide(given: dict[str, Any]) -> Verdict:
    """What a job needs it gets: its slide, over TLS that it can verify; and only with the URL's signature."""
    import urllib.error
    import urllib.request

    context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
    with urllib.request.urlopen(given["slide_url"], timeout=20, context=context) as answer:
        whole = answer.read() == given["slide"].encode()
    try:
        urllib.request.urlopen(given["slide_url"].partition("?")[0], timeout=20, context=context).close()
    except urllib.error.HTTPError as error:
        bare = error.code
    else:
        bare = 200
    return whole and bare == 403, f"fetched whole: {whole}; without its signature: {bare}"


PROBES: dict[str, Probe] = {
    "network-interfaces": interfaces, "internet": internet, "metadata-address": metadata, "node-ports": node_ports,
    "loopback-ports": own_loopback, "name-service": names, "proxy-connect": proxy_connect, "proxy-urls": proxy_urls,
    "tls-server-names": server_names, "results-paths": results_paths, "slide": slide,
}  # fmt: skip
