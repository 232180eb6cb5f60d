"""Containers that look for a way to anything but their slide and the results gateway."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from mhs_ray.sandbox.audit import outside
from mhs_ray.sandbox.routes import DirectRoute
from tests.e2e.hostile.arena import Arena

pytestmark = pytest.mark.engine


def test_neither_metadata_nor_node_nor_internet_is_reached(arena: Arena) -> None:
    ports = sorted({*outside.node_ports(), arena.port})
    addresses = outside.node_addresses()
    program = f"""
        def try_(address, port, kind=socket.SOCK_STREAM):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family, kind) as s:
                s.settimeout(1)
                try:
                    s.connect((address, port))
                    if kind == socket.SOCK_DGRAM:
                        s.send(b"x")
                        s.recv(1)
                    say("reached", address, port)
                except OSError:
                    pass
        for address in ("169.254.169.254", "169.254.170.2", "fd00:ec2::254", "1.1.1.1", "2606:4700:4700::1111", "10.0.0.1"):
            for port in (80, 443):
                try_(address, port)
        for port in {ports}:
            for address in ["127.0.0.1", "::1", "0.0.0.0", *{addresses}]:
                if port not in (80, 443, 3128):
                    try_(address, port)
        for server in ("127.0.0.53", "8.8.8.8", "127.0.0.1"):
            try_(server, 53, socket.SOCK_DGRAM)
        for name in ("example.com", "metadata.google.internal", "host.containers.internal", "host.docker.internal"):
            try:
                say("reached", socket.getaddrinfo(name, 80))
            except OSError:
                pass
        say("done")
        sys.exit(7)
    """
    ended = arena.run(program)
    assert ended.said("done") == [""]
    assert ended.said("reached") == []


def test_the_proxy_is_no_way_round(arena: Arena) -> None:
    with socket.socket() as witness:
        witness.bind(("127.0.0.1", 0))
        witness.listen()
        witness.settimeout(0.2)
        port = witness.getsockname()[1]
        program = f"""
            own = "api." + os.environ["HOST"]
            def ask(data, port=3128):
                with socket.create_connection(("127.0.0.1", port), 10) as s:
                    s.settimeout(15)
                    s.sendall(data.encode("latin-1"))
                    try:
                        return s.recv(4096).split(b"\\r\\n")[0].decode("latin-1") or "closed"
                    except OSError:
                        return "closed"
            for target in ("169.254.169.254:80", "127.0.0.1:{port}", "localhost:{port}", "[::ffff:127.0.0.1]:{port}", "0:{port}",
                           "2130706433:{port}", "127.1:{port}", own + ":22", own + "@127.0.0.1:{port}", "user:x@" + own + ":443",
                           own + ".evil.example:443", "evil.example:443", own + ":443@127.0.0.1:{port}", own + "\\t:443", "[::1]:{port}"):
                say("answer", ask(f"CONNECT {{target}} HTTP/1.1\\r\\nHost: {{own}}\\r\\n\\r\\n"))
            for url in ("http://169.254.169.254/latest/meta-data/", "http://127.0.0.1:{port}/", f"http://{{own}}@127.0.0.1:{port}/",
                        f"http://127.0.0.1:{port}\\\\@{{own}}/", f"http://{{own}}:{port}/", "ftp://127.0.0.1:{port}/", "//127.0.0.1:{port}/"):
                say("answer", ask(f"GET {{url}} HTTP/1.1\\r\\nHost: {{own}}\\r\\n\\r\\n"))
            for host in ("127.0.0.1:{port}", "evil.example", own + "\\r\\nHost: 127.0.0.1:{port}"):
                say("answer", ask(f"GET /latest HTTP/1.1\\r\\nHost: {{host}}\\r\\n\\r\\n", 80))
            # A second request on a connection that was allowed names another host.
            with socket.create_connection(("127.0.0.1", 80), 10) as s:
                s.sendall(f"GET /api/v3/x HTTP/1.1\\r\\nHost: {{own}}\\r\\n\\r\\n".encode())
                s.sendall(b"GET /x HTTP/1.1\\r\\nHost: 127.0.0.1:{port}\\r\\nConnection: close\\r\\n\\r\\n")
                s.settimeout(15)
                got = b""
                while piece := s.recv(65536):
                    got += piece
                say("second", [part[:3].decode() for part in got.split(b"HTTP/1.1 ")[1:]])
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            for name in ("evil.example", "metadata.google.internal", "localhost"):
                for through in (False, True):
                    s = socket.create_connection(("127.0.0.1", 3128 if through else 443), 10)
                    if through:
                        s.sendall(f"CONNECT {{own}}:443 HTTP/1.1\\r\\nHost: {{own}}\\r\\n\\r\\n".encode())
                        s.recv(4096)
                    try:
                        context.wrap_socket(s, server_hostname=name)
                        say("tls", name, through)
                    except OSError:
                        pass
            # The right name in TLS, another one in the request.
            s = context.wrap_socket(socket.create_connection(("127.0.0.1", 443), 10), server_hostname=own)
            s.sendall(b"GET /api/v3/x HTTP/1.1\\r\\nHost: 127.0.0.1:{port}\\r\\nConnection: close\\r\\n\\r\\n")
            say("fronted", s.recv(4096).split(b"\\r\\n")[0].decode())
            for path in ("/api/v1/jobs", "/", "/api/v3/../v1/jobs", "/api/v3/%2e%2e/v1/jobs", "/openapi.json", "/docs"):
                say("path", call("GET", path))
            sys.exit(7)
        """
        ended = arena.run(program)
        with pytest.raises(TimeoutError):
            witness.accept()
    answers = ended.said("answer")
    assert len(answers) == 25
    assert [a for a in answers if " 40" not in a[:13] and a != "closed"] == []
    assert ended.said("tls") == []
    assert ended.said("second") == ["['404', '403']"], ended.said("second")
    assert ended.said("fronted")[0].split()[1] in ("403", "421")
    assert ended.said("path") == ["403"] * 6
    assert any(line.startswith("blocked: 169.254.169.254:80") for line in ended.log)


def test_a_listed_name_that_resolves_to_the_node_is_not_dialled(podman_arena: Arena) -> None:
    with socket.socket() as witness:
        witness.bind(("127.0.0.1", 0))
        witness.listen()
        witness.settimeout(0.2)
        port = witness.getsockname()[1]
        order = podman_arena.new_order(
            f"""
            s = socket.create_connection(("127.0.0.1", 3128), 10)
            s.sendall(b"CONNECT localhost:{port} HTTP/1.1\\r\\n\\r\\n")
            say("answer", s.recv(4096).split(b"\\r\\n")[0].decode())
            sys.exit(7)
            """
        )
        before = podman_arena.node
        podman_arena.node = replace(before, direct=(DirectRoute("localhost", port),))
        try:
            ended = podman_arena.run_order(order)
        finally:
            podman_arena.node = before
        with pytest.raises(TimeoutError):
            witness.accept()
    assert ended.said("answer")[0].split()[1] == "502"
    assert "resolves to a non-public address" in ended.text


def test_slow_and_many_connections_do_not_keep_an_honest_request_out(podman_arena: Arena) -> None:
    program = """
        held = []
        for n in range(600):
            try:
                s = socket.create_connection(("127.0.0.1", (3128, 443, 80)[n % 3]), 0.3)
                s.sendall(b"POST /api/v3/external/results/1 HTTP/1.1\\r\\nHost: x\\r\\nX-Slow: "[: 10 + n % 40])
                held.append(s)
            except OSError:
                pass
        say("held", len(held))
        time.sleep(11)  # a head must come whole within 10 s
        say("answer", post())
    """
    ended = podman_arena.run(program)
    assert ended.said("answer") == ["201"]
    assert ended.code is None


def test_a_slow_body_ends_with_its_container(podman_arena: Arena) -> None:
    program = """
        own = "api." + os.environ["HOST"]
        context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
        held = []
        for _ in range(20):
            s = context.wrap_socket(socket.create_connection(("127.0.0.1", 443), 10), server_hostname=own)
            s.sendall(f"POST /api/v3/external/results/{os.environ['TASK_ID']} HTTP/1.1\\r\\nHost: {own}\\r\\n"
                      f"Authorization: Bearer {os.environ['JWT_TOKEN']}\\r\\nContent-Length: 1000000\\r\\n\\r\\n{{".encode())
            held.append(s)
        for _ in range(6):
            for s in held:
                s.sendall(b" ")
            time.sleep(0.5)
        say("answer", post())
        time.sleep(60)
    """
    ended = podman_arena.run(program, time_limit_s=8)
    assert ended.said("answer") == ["201"]
    assert ended.code == "time-limit"
    assert ended.took_s < 30
