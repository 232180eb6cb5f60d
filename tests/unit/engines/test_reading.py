"""Reading a container's output from podman's log file and from Docker's frames; errors without secrets."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhs_ray.domain.errors import EngineError
from mhs_ray.engines import podman_log, process
from mhs_ray.engines.docker_attach import Frames, overlap
from mhs_ray.engines.select import pick_engine
from mhs_ray.ports import Stream

STAMP = b"2026-01-01T00:00:00.000000001+00:00"


def line(text: bytes, stream: bytes = b"stdout", kind: bytes = b"F") -> bytes:
    return b" ".join((STAMP, stream, kind, text)) + b"\n"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(["sleep", "60"])
    yield child
    child.kill()
    child.wait()


def test_pieces_of_a_line_come_without_line_breaks_between_them(tmp_path: Path) -> None:
    path = tmp_path / "ctr.log"
    path.write_bytes(line(b"half", kind=b"P") + line(b" whole") + line(b"oh", b"stderr") + b"damaged\n" + line(b""))
    assert list(podman_log.follow(path, podman_log.Alive())) == [
        ("stdout", b"half"),
        ("stdout", b" whole\n"),
        ("stderr", b"oh\n"),
        ("stdout", b"\n"),
    ]


def test_a_file_that_is_turned_over_is_read_out_first(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    path = tmp_path / "ctr.log"
    path.write_bytes(line(b"1"))
    lines = podman_log.follow(path, podman_log.Alive(sleeper.pid))
    assert next(lines) == ("stdout", b"1\n")
    with path.open("ab") as file:
        file.write(line(b"2"))
    fresh = tmp_path / "new"
    fresh.write_bytes(line(b"3"))
    fresh.rename(path)
    assert next(lines) == ("stdout", b"2\n")
    assert next(lines) == ("stdout", b"3\n")
    with path.open("ab") as file:
        file.write(line(b"4"))
    sleeper.kill()
    assert list(lines) == [("stdout", b"4\n")]


def test_what_was_delivered_is_left_out_to_the_byte() -> None:
    pieces: list[tuple[Stream, bytes]] = [("stdout", b"abc"), ("stderr", b"xy"), ("stdout", b"def"), ("stdout", b"g")]
    assert list(podman_log.skipping(iter(pieces), {"stdout": 4})) == [
        ("stderr", b"xy"),
        ("stdout", b"ef"),
        ("stdout", b"g"),
    ]


def test_frames_are_put_together_however_they_are_cut() -> None:
    ours, theirs = socket.socketpair()
    payload = b"".join(
        struct.pack(">BxxxL", n, len(t)) + t for n, t in ((1, b"out"), (2, b"err"), (1, b""), (1, b"end"))
    )
    frames = Frames(ours, payload[:3])

    def feed() -> None:
        for byte in payload[3:]:
            theirs.send(bytes([byte]))
        theirs.close()

    thread = threading.Thread(target=feed)
    thread.start()
    heard: dict[str, bytes] = {"stdout": b"", "stderr": b""}
    for stream, data in frames.pieces():
        heard[stream] += data
    thread.join()
    frames.close()
    assert heard == {"stdout": b"outend", "stderr": b"err"}


def test_an_idle_stream_can_be_read_on() -> None:
    ours, theirs = socket.socketpair()
    frames = Frames(ours, struct.pack(">BxxxL", 1, 4) + b"ab")
    assert list(frames.pieces(0.05)) == [("stdout", b"ab")]
    theirs.send(b"cd")
    theirs.close()
    assert list(frames.pieces()) == [("stdout", b"cd")]
    frames.close()


@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=80))
def test_an_overlap_is_found_and_never_invented(before: bytes, shared: bytes, after: bytes) -> None:
    found = overlap(before + shared, shared + after)
    assert found >= len(shared)
    assert (before + shared)[len(before + shared) - found :] == (shared + after)[:found]


def test_an_overlap_is_the_longest_there_is() -> None:
    assert overlap(b"", b"abc") == 0
    assert overlap(b"xyz", b"abc") == 0
    assert overlap(b"1\n2\n3\n", b"2\n3\n4\n") == 4
    assert overlap(b"a" * 100, b"a" * 40) == 40
    assert overlap(b"x" * 50 + b"y" * 50, b"y" * 50 + b"z" * 500) == 50


def test_a_failing_program_is_told_without_secrets() -> None:
    with pytest.raises(EngineError) as caught:
        process.call(
            "podman", "do it", ["sh", "-c", "echo Error: bad hunter2hunter2 >&2; exit 1"], secrets=["hunter2hunter2"]
        )
    assert str(caught.value) == "podman could not do it: bad ***"


def test_a_hanging_program_is_given_up() -> None:
    with pytest.raises(EngineError, match="no answer within 0 s"):
        process.call("podman", "do it", ["sleep", "60"], timeout_s=0.1)


def test_no_engine_at_all_tells_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match=r"apt-get install podman.*apt-get install docker\.io"):
        pick_engine("auto", docker_host=f"unix://{tmp_path}/none.sock", folder=tmp_path)
    with pytest.raises(EngineError, match="apt-get install podman"):
        pick_engine("podman", folder=tmp_path)
    with pytest.raises(EngineError, match=r"none\.sock"):
        pick_engine("docker", docker_host=f"unix://{tmp_path}/none.sock", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
