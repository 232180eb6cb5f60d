"""Planted secrets, looked for afterwards wherever they have no business.

The one place that cannot be helped while a job runs: the container's own environment, which root on the node can read
from the engine (its description of that container) and from /proc/PID/environ. Pages of the engine's own database
that were freed, in a file that only root can read, may hold it for some time after.
"""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import sqlalchemy as sa

from mhs_ray.domain.env import EnvVar
from mhs_ray.slides.cache import SlideCache, SlideSource
from mhs_ray.slides.url_guard import UrlPolicy
from tests.e2e.hostile.arena import Arena

pytestmark = pytest.mark.engine

_ENV, _LINES, _SIGNATURE = "canary-env-4f1d8e", "canary-key-one\ncanary-key-two", "canary-signature-77aa"


@contextmanager
def _slide_host(slide: Path) -> Iterator[str]:
    """Serve `slide` by a URL with a signature; one without gets 403."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            data = slide.read_bytes() if _SIGNATURE in self.path else b""
            self.send_response(200 if data else 403)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", '"1"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/slide?X-Amz-Signature={_SIGNATURE}"
    server.shutdown()
    thread.join()
    server.server_close()


class _ProcessWatch(threading.Thread):
    """Looks at every command line of the node again and again."""

    def __init__(self, canaries: list[str]) -> None:
        super().__init__(daemon=True)
        self.canaries, self.found, self.rounds = canaries, set[str](), 0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.02):
            self.rounds += 1
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    with suppress(OSError):
                        line = (entry / "cmdline").read_bytes().decode(errors="replace")
                        self.found |= {f"{c} in {line[:200]}" for c in self.canaries if c in line}


def _files_with(folder: Path, canaries: list[str]) -> list[str]:
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 64 << 20:
            with suppress(OSError):
                data = path.read_bytes()
                found += [f"{c} in {path}" for c in canaries if c.encode() in data]
    return found


def test_no_secret_is_found_where_it_has_no_business(arena: Arena, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    before = arena.node
    program = """
        secrets = [os.environ["CANARY_ENV"], os.environ["JWT_TOKEN"], os.environ["SCAN_URL"].partition("?")[2], *os.environ["CANARY_LINES"].splitlines()]
        for secret in secrets:
            print("whole", secret, flush=True)
            for character in secret:  # in pieces, each a write of its own
                os.write(1, character.encode())
            os.write(1, b"\\n")
            os.write(2, b"a" * (65536 - 10 - len(secret) // 2) + secret.encode() + b"\\n")  # over the longest line's end
        print(os.environ, flush=True)
        os.write(1, ("x" * 40 + secrets[0]).encode())  # never ended
        time.sleep(1)
        urllib.request.urlopen(urllib.request.Request(os.environ["DEBUG_FILE_UPLOAD_URL"], b"debug", method="PUT"))
        raise RuntimeError("with " + secrets[0])
    """
    env = {"CANARY_ENV": _ENV, "CANARY_LINES": _LINES}
    with _slide_host(arena.folder / "slide.tiff") as url:
        container = arena.world.container(
            arena.company, env=[EnvVar(name, value, secret=True) for name, value in env.items()]
        )
        algorithm = arena.world.algorithm(arena.company, container)
        arena.world.scan(arena.company, location={"urls": [url]})
        known, arena.algorithm = arena.algorithm, algorithm
        order = replace(arena.new_order(program, env=env), slide=SlideSource((url,)))
        arena.algorithm = known
        canaries = [_ENV, *_LINES.splitlines(), _SIGNATURE, order.jwt_token, order.pull.password]
        arena.node = replace(before, cache=SlideCache(arena.folder / "slides-2", policy=UrlPolicy(allow_private=True)))
        watch = _ProcessWatch(canaries)
        watch.start()
        try:
            ended = arena.run_order(order)
        finally:
            arena.node = before
            watch.ended.set()
            watch.join()
    assert ended.code == "exit-code", ended.failure
    assert watch.rounds > 10
    assert watch.found == set()
    assert "[redacted]" in ended.text
    texts = {
        "the job's log": ended.text,
        "the worker's output": "\n".join(arena.echoed),
        "the platform's log": caplog.text,
        "the outcome": repr(ended.outcome) + repr(pickle.dumps(ended.outcome)),
        "the failure card": repr(ended.failure),
        "the order as a log would show it": repr(order).replace("env=", ""),
    }
    assert [f"{c} in {where}" for where, text in texts.items() for c in canaries if c in text] == []
    with arena.core.db.read() as conn:
        conn.execute(sa.text("PRAGMA wal_checkpoint(FULL)"))
    for folder in (arena.settings.home, arena.node.folder, arena.folder / "slides-2"):
        assert _files_with(folder, canaries) == []


def test_other_containers_and_labels_hold_no_secret(arena: Arena) -> None:
    env = {"CANARY_ENV": _ENV}
    order = arena.new_order("time.sleep(1); sys.exit(7)", env=env)
    seen: list[str] = []

    def look() -> None:
        names = (order.container_name, f"{order.container_name}-net")
        seen.extend(repr(status) for name in names if (status := arena.engine.inspect(name)) is not None)

    from mhs_ray.attempt.runner import AttemptRunner

    outcome = AttemptRunner(order, arena.node, gpus=(), on_started=look, echo=lambda _line: None).run()
    arena.end(order, None)
    arena.nothing_is_left()
    assert outcome.failure is None
    assert len(seen) == (1 if arena.engine.name == "podman" else 2)  # Docker needs a pause container
    canaries = [_ENV, order.jwt_token, order.pull.password]
    assert [c for c in canaries for text in seen if c in text] == []


def test_only_the_engines_own_database_may_remember_an_ended_containers_environment(arena: Arena) -> None:
    secret = "canary-left-behind-0b7c"
    ended = arena.run("say('answer', post())", env={"CANARY_ENV": secret})
    assert ended.code is None
    args = getattr(arena.engine, "args", ())
    root = next((Path(a.partition("=")[2]).parent for a in args if a.startswith("--root=")), None)
    root = root or Path(str(getattr(arena.engine, "host", "")).removeprefix("unix://")).parent
    assert root.is_dir()
    found = [Path(text.partition(" in ")[2]) for text in _files_with(root, [secret])]
    assert {path.name for path in found} <= {"bolt_state.db", "db.sql", "db.sql-wal", "meta.db"}
    for path in found:  # nobody but root gets there
        assert any(p.stat().st_mode & 0o007 == 0 for p in (path, *path.parents) if p.is_relative_to(root)), path
