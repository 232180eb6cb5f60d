"""Containers that take all they can: each ends with a name for it, and the node does not feel it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from tests.e2e.hostile.arena import JOBS, MIB, SCRATCH, Arena

pytestmark = pytest.mark.engine


def test_a_fork_bomb_ends_at_a_limit(arena: Arena) -> None:
    program = """
        say("begin")
        deadline = time.time() + 60
        while time.time() < deadline:
            try:
                if os.fork() == 0:
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
            except OSError:
                time.sleep(0.2)
    """
    ended = arena.run(program, time_limit_s=4)
    assert ended.code in ("time-limit", "out-of-memory")  # whichever is met first
    assert ended.took_s < 40


def test_a_memory_hog_is_named_out_of_memory(arena: Arena) -> None:
    ended = arena.run("held = [bytearray(8 << 20) for _ in range(200)]; post()")
    assert ended.code == "out-of-memory"
    assert ended.failure is not None
    assert "g4dn.xlarge" in ended.failure.cause


def test_a_child_that_dies_of_memory_does_not_spoil_a_good_result(arena: Arena) -> None:
    program = """
        pid = os.fork()
        if pid == 0:
            held = [bytearray(8 << 20) for _ in range(200)]
            os._exit(0)
        say("child", os.waitpid(pid, 0)[1])
        say("answer", post())
    """
    ended = arena.run(program)
    assert ended.said("child") == ["9"]
    assert ended.code is None


def test_exit_code_137_alone_is_not_out_of_memory(arena: Arena) -> None:
    ended = arena.run("os._exit(137)")
    assert ended.code == "exit-code"
    assert ended.outcome.exit is not None
    assert not ended.outcome.exit.oom_killed


def test_every_writable_place_is_full_at_its_limit_and_the_rest_takes_nothing(arena: Arena) -> None:
    before = _allocated(arena.folder)
    program = """
        total = 0
        for place in ("/tmp", "/var/tmp", "/input", "/output", "/scratch", "/run", "/volume", "/dev", "/dev/mqueue",
                      "/", "/etc", "/usr", "/app", "/proc", "/sys", "/sys/fs/cgroup", "/etc/mhs"):
            written = 0
            try:
                with open(place + "/fill", "wb", buffering=0) as out:
                    while written < 400 << 20:
                        written += out.write(bytes(1 << 20))
                say("endless", place)
            except OSError as error:
                say("place", place, written >> 20, error.strerror)
            total += written
            if place in ("/run", "/volume", "/dev"):
                try:
                    os.unlink(place + "/fill")
                except OSError:
                    pass
        say("total", total >> 20)
        sys.exit(3)
    """
    ended = arena.run(program)
    assert ended.said("endless") == []
    took = {line.split()[0]: int(line.split()[1]) for line in ended.said("place")}
    disk = ("/tmp", "/var/tmp", "/input", "/output", "/scratch")
    assert SCRATCH // MIB * 0.5 < sum(took[place] for place in disk) <= SCRATCH // MIB
    assert {place for place, mib in took.items() if mib} <= {*disk, "/run", "/volume", "/dev"}
    assert ended.code == "exit-code"
    assert _allocated(arena.folder) < before + 20 * MIB


def test_shared_memory_counts_as_memory(arena: Arena) -> None:
    program = """
        with open("/dev/shm/fill", "wb", buffering=0) as out:
            for _ in range(1000):
                out.write(bytes(1 << 20))
        post()
    """
    assert arena.run(program).code in ("out-of-memory", "exit-code")


def test_files_without_bytes_end_at_a_limit_too(arena: Arena) -> None:
    program = """
        made = 0
        try:
            while made < 100_000:
                os.close(os.open(f"/scratch/{made}", os.O_CREAT))
                made += 1
        except OSError as error:
            say("ended", made, error.strerror)
        sys.exit(3)
    """
    ended = arena.run(program)
    assert int(ended.said("ended")[0].split()[0]) <= SCRATCH // (16 << 10)


def test_a_log_flood_is_cut_and_counted(arena: Arena) -> None:
    program = """
        line = b"x" * 200 + b"\\n"
        block = line * 2000
        deadline = time.time() + 60
        while time.time() < deadline:
            os.write(1, block)
    """
    ended = arena.run(program, time_limit_s=4)
    assert ended.code == "time-limit"
    assert sum(len(line) for line in ended.log) <= JOBS.max_log + 1000
    assert any("log limit reached" in line for line in ended.log)
    assert len(arena.echoed) < 30_000
    arena.echoed.clear()


def test_endless_lines_and_control_characters_cannot_harm_who_reads_the_log(arena: Arena) -> None:
    program = r"""
        for _ in range(50):
            os.write(1, b"y" * (1 << 20))
        os.write(1, b"\n\x1b[2J\x1b]0;owned\x07 nul:\x00 bad:\xff\xfe bell:\x07 back:\x08\x08 sep:\xe2\x80\xa8.\r\n")
        os.write(2, b"forged\r2026-01-01T00:00:00Z p the platform says so\n")
        sys.exit(3)
    """
    ended = arena.run(program)
    assert max(len(line) for line in ended.log) < JOBS.max_log_line + 200
    assert any("more bytes in this line" in line for line in ended.log)
    assert not any(ord(c) < 32 and c != "\t" for line in ended.log for c in line)
    assert any("\\x1b[2J" in line and "\\x00" in line for line in ended.log)


def test_ignoring_term_and_detaching_do_not_help(arena: Arena) -> None:
    program = """
        for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGCONT"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for fd in (0, 1, 2):
                    os.close(fd)
                time.sleep(333)
            os._exit(0)
        say("posted", post())
        time.sleep(333)
    """
    begun = time.monotonic()
    ended = arena.run(program, time_limit_s=3)
    assert ended.code == "time-limit"
    assert ended.failure is not None
    assert "results that it had posted were kept" in ended.failure.cause
    assert time.monotonic() - begun < 20


def test_a_detached_process_does_not_keep_an_ended_job(arena: Arena) -> None:
    program = """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(333)  # holds the log's pipe open
            os._exit(0)
        time.sleep(0.3)
        say("answer", post())
    """
    ended = arena.run(program)
    assert ended.code is None
    assert ended.took_s < 20


def test_nothing_posted_is_not_a_success(arena: Arena) -> None:
    assert arena.run("say('all is well')").code == "no-results"


def _allocated(folder: Path) -> int:
    """Return the bytes of disk that what is below `folder` takes; the whole disk's would count the neighbours' too."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # the API beside us moves its own files
            total += path.lstat().st_blocks * 512
    return total
