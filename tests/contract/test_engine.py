"""What every container engine must do, on real podman and real Docker."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from mhs_ray.domain.errors import EngineError, ExecError
from mhs_ray.engines import labels, reaper, usage
from mhs_ray.engines.build import image_tools
from mhs_ray.engines.docker import DockerEngine
from mhs_ray.engines.pause import PAUSE_COMMAND, ensure_pause_image
from mhs_ray.engines.podman import PodmanEngine
from mhs_ray.ports import ContainerSpec, ContainerStatus, Limits, Mount, Stream
from tests.engines_fixtures import unique

pytestmark = pytest.mark.engine

Engine = PodmanEngine | DockerEngine
MIB = 1 << 20
PLATFORM = "contract-test"


@dataclass
class Heard:
    """What one run() handed over."""

    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    largest: int = 0
    started: list[ContainerStatus] = field(default_factory=list)
    first: threading.Event = field(default_factory=threading.Event)
    running: threading.Event = field(default_factory=threading.Event)

    def on_output(self, stream: Stream, data: bytes) -> None:
        (self.stdout if stream == "stdout" else self.stderr).extend(data)
        self.largest = max(self.largest, len(data))
        self.first.set()

    def on_started(self, status: ContainerStatus) -> None:
        self.started.append(status)
        self.running.set()


@pytest.fixture
def make(engine: Engine, small_image: str) -> Iterator[Callable[..., ContainerSpec]]:
    """Make specs of containers that are removed after the test."""
    names: list[str] = []

    def spec(command: Sequence[str] | str, **changes: object) -> ContainerSpec:
        name = unique("t", engine.name)
        names.append(name)
        words = ("/bin/sh", "-c", command) if isinstance(command, str) else tuple(command)
        base = ContainerSpec(
            name=name,
            image=small_image,
            env={"PYTHONHOME": "/usr/local", "PATH": "/bin:/usr/local/bin"},
            labels={labels.PLATFORM: PLATFORM, labels.JOB: "7", labels.ATTEMPT: "1", labels.ROLE: labels.ROLE_MODEL},
            limits=Limits(cpus=1, memory_bytes=256 * MIB, pids=64, shm_bytes=16 * MIB),
            command=words,
            tmpfs={"/tmp": 512 * MIB},
        )
        return replace(base, **changes)  # type: ignore[arg-type]

    yield spec
    for name in reversed(names):
        engine.remove(name)


def run(engine: Engine, spec: ContainerSpec) -> Heard:
    heard = Heard()
    engine.run(spec, heard.on_output, heard.on_started)
    return heard


def ended(engine: Engine, spec: ContainerSpec) -> ContainerStatus:
    status = engine.inspect(spec.name)
    assert status is not None
    assert not status.running
    return status


class Background:
    """run() in a thread of its own."""

    def __init__(self, engine: Engine, spec: ContainerSpec) -> None:
        self.heard = Heard()
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(engine, spec), daemon=True)
        self._thread.start()

    def _run(self, engine: Engine, spec: ContainerSpec) -> None:
        try:
            engine.run(spec, self.heard.on_output, self.heard.on_started)
        except Exception as exc:
            self.error = exc

    def join(self, timeout_s: float = 60) -> Heard:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "run() did not return"
        if self.error is not None:
            raise self.error
        return self.heard


def test_info_says_what_the_engine_is(engine: Engine) -> None:
    info = engine.info()
    assert info.name == engine.name
    assert info.version[0].isdigit()
    assert info.cgroup_version in (1, 2)
    assert info.user_namespace or any("user namespace" in sentence for sentence in info.missing)
    assert info.host_uid > 0


def test_output_of_both_streams_arrives_and_the_exit_code_is_told(
    engine: Engine, make: Callable[..., ContainerSpec]
) -> None:
    spec = make("echo out; echo err >&2; exit 3")
    heard = run(engine, spec)
    assert bytes(heard.stdout) == b"out\n"
    assert bytes(heard.stderr) == b"err\n"
    assert len(heard.started) == 1
    status = ended(engine, spec)
    assert status.exit_code == 3
    assert not status.oom_killed
    assert status.labels[labels.JOB] == "7"


def test_a_started_container_is_told_with_its_pid_on_the_node(
    engine: Engine, make: Callable[..., ContainerSpec]
) -> None:
    spec = make("echo up; sleep 60")
    job = Background(engine, spec)
    assert job.heard.running.wait(30)
    pid = job.heard.started[0].pid
    assert pid is not None
    assert job.heard.first.wait(10)
    assert Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    assert engine.inspect(spec.name).pid == pid  # type: ignore[union-attr]
    used = usage.sample(pid)
    assert used is not None
    assert used.cpu_s is not None
    assert used.cpu_s < 60
    assert used.memory_bytes
    assert used.memory_bytes < 256 * MIB
    assert (used.memory_peak_bytes or used.memory_bytes) >= used.memory_bytes
    assert used.pids in (2, 3)
    engine.stop(spec.name, 0)
    job.join()
    assert usage.sample(pid) is None


def test_a_flood_of_lines_arrives_whole_and_in_order(engine: Engine, make: Callable[..., ContainerSpec]) -> None:
    heard = run(
        engine, make("seq -f 'line %.0f of a flood that makes the log driver turn over its file, ...........' 1 100000")
    )
    lines = bytes(heard.stdout).splitlines()
    assert len(lines) == 100_000
    assert all(line.startswith(b"line %d of" % (i + 1)) for i, line in enumerate(lines))
    assert heard.largest <= 1 << 16


def test_one_line_of_50_mb_comes_in_small_pieces(engine: Engine, make: Callable[..., ContainerSpec]) -> None:
    total, largest = 0, 0

    def count(_: Stream, data: bytes) -> None:
        nonlocal total, largest
        total, largest = total + len(data), max(largest, len(data))

    engine.run(make("head -c 50000000 /dev/zero"), count, lambda _: None)
    assert total == 50_000_000
    assert largest <= 1 << 16


def test_a_short_container_loses_nothing(engine: Engine, make: Callable[..., ContainerSpec]) -> None:
    for i in range(5):
        assert bytes(run(engine, make(["/bin/echo", str(i)])).stdout) == b"%d\n" % i


def test_out_of_memory_is_told(engine: Engine, make: Callable[..., ContainerSpec]) -> None:
    spec = make(["/usr/local/bin/python3", "-c", "x = b'x' * (1 << 30)"], limits=Limits(1, 64 * MIB, shm_bytes=MIB))
    run(engine, spec)
    status = ended(engine, spec)
    assert status.oom_killed
    assert status.exit_code == 137


def test_out_of_memory_is_told_to_an_engine_that_did_not_watch(
    engine: Engine, make: Callable[..., ContainerSpec], tmp_path: Path
) -> None:
    if isinstance(engine, PodmanEngine) and not os.access("/dev/kmsg", os.R_OK):
        pytest.skip("the kernel log cannot be read here, and podman 4 itself does not know")
    spec = make(["/usr/local/bin/python3", "-c", "x = b'x' * (1 << 30)"], limits=Limits(1, 64 * MIB, shm_bytes=MIB))
    run(engine, spec)
    other: Engine = (
        PodmanEngine(engine.args, folder=tmp_path)
        if isinstance(engine, PodmanEngine)
        else DockerEngine(engine.host, folder=tmp_path)
    )
    assert ended(other, spec).oom_killed


def test_exit_137_is_not_out_of_memory(engine: Engine, make: Callable[..., ContainerSpec]) -> None:
    spec = make("exit 137")
    run(engine, spec)
    status = ended(engine, spec)
    assert status.exit_code == 137
    assert not status.oom_killed


def test_a_child_out_of_memory_leaves_the_exit_code_alone(engine: Engine, make: Callable[..., ContainerSpec]) -> None:
    code = """
        import subprocess, sys
        child = subprocess.run([sys.executable, "-c", "x = b'x' * (1 << 30)"])
        print(child.returncode)
    """
    spec = make(["/usr/local/bin/python3", "-c", textwrap.dedent(code)], limits=Limits(1, 96 * MIB, shm_bytes=MIB))
    heard = run(engine, spec)
    assert bytes(heard.stdout) == b"-9\n"
    assert ended(engine, spec).exit_code == 0


def test_term_ends_a_program_without_a_handler_at_once(engine: Engine, make: Callable[..., ContainerSpec]) -> None:
    spec = make(["/bin/sleep", "300"])
    job = Background(engine, spec)
    assert job.heard.running.wait(30)
    began = time.monotonic()
    engine.stop(spec.name, 30)
    job.join()
    assert time.monotonic() - began < 20
    assert ended(engine, spec).exit_code == 143


def test_a_program_that_ignores_term_is_killed_after_the_grace(
    engine: Engine, make: Callable[..., ContainerSpec]
) -> None:
    spec = make("trap 'echo no' TERM; echo ready; while :; do sleep 0.1; done")
    job = Background(engine, spec)
    assert job.heard.first.wait(30)
    engine.stop(spec.name, 1)
    heard = job.join()
    assert b"no\n" in heard.stdout
    status = ended(engine, spec)
    assert status.exit_code == 137
    assert not status.oom_killed


def test_environment_values_arrive_byte_for_byte(engine: Engine, make: Callable[..., ContainerSpec]) -> None:
    env = {
        "PYTHONHOME": "/usr/local",
        "PATH": "/bin:/usr/local/bin:/mine",
        "HOME": "/scratch",
        "MULTI": "-----BEGIN-----\nline two\n\nline four\n",
        "QUOTED": '"in quotes"',
        "SPACES": "  both ends  ",
        "HASH": "#no comment",
        "EQUALS": "a=b=c",
        "EMPTY": "",
        "UNICODE": "Grüße 你好",
        "CARRIAGE": "a\r",
        "DOLLAR": "${HOME} $PATH `id`",
    }
    spec = make(["/usr/local/bin/python3", "-c", "import json, os; print(json.dumps(dict(os.environ)))"], env=env)
    seen = json.loads(bytes(run(engine, spec).stdout))
    assert {name: seen.get(name) for name in env} == env
    assert seen["LD_PRELOAD"] == ""
    assert seen["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert not any(name.lower().endswith("_proxy") for name in seen)


def test_environment_values_are_in_no_command_line(engine: Engine, make: Callable[..., ContainerSpec]) -> None:
    secret = "s3cret-value-that-ps-must-not-show"
    spec = make("echo up; sleep 60", env={"TOKEN": secret, "KEY": f"{secret}\nsecond", "PATH": "/bin"})
    job = Background(engine, spec)
    shown = []
    while not job.heard.first.is_set():
        shown += _command_lines_with(secret)
    shown += _command_lines_with(secret)
    engine.remove(spec.name)
    job.join()
    assert shown == []


def _command_lines_with(text: str) -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        line = _read(path)
        if text.encode() in line:
            found.append(line)
    return found


def test_a_container_is_adopted_after_its_reader_was_killed(
    engine: Engine, make: Callable[..., ContainerSpec], tmp_path: Path
) -> None:
    go = tmp_path / "gate"
    go.mkdir(mode=0o755)
    spec = make(
        "seq 1 1000; while [ ! -e /gate/go ]; do sleep 0.05; done; seq 1001 2000; echo last >&2; exit 4",
        mounts=[Mount(go, "/gate")],
    )
    reader = _reader_process(engine, spec)
    assert reader.stdout is not None
    assert reader.stdout.readline() == b"1\n"
    reader.kill()
    reader.wait()
    job = Background(engine, spec)
    assert job.heard.running.wait(30)
    assert job.heard.first.wait(30)
    (go / "go").touch()
    heard = job.join()
    assert [int(line) for line in bytes(heard.stdout).splitlines()] == list(range(1, 2001))
    assert bytes(heard.stderr) == b"last\n"
    assert ended(engine, spec).exit_code == 4


def test_adopting_while_it_speaks_neither_loses_nor_repeats(engine: Engine, make: Callable[..., ContainerSpec]) -> None:
    code = """
        import time
        for i in range(3000):
            print(i, flush=True)
            if i % 2 == 0:
                time.sleep(0.0005)
    """
    spec = make(["/usr/local/bin/python3", "-c", textwrap.dedent(code)])
    readers = [Background(engine, spec)]
    assert readers[0].heard.first.wait(30)
    for _ in range(4):
        readers.append(Background(engine, spec))
        assert readers[-1].heard.first.wait(30)
    for reader in readers:
        heard = reader.join()
        assert [int(line) for line in bytes(heard.stdout).splitlines()] == list(range(3000))


def test_the_reader_goes_on_when_the_podman_client_dies(podman_engine: PodmanEngine, small_image: str) -> None:
    spec = ContainerSpec(
        name=unique("c"),
        image=small_image,
        env={"PATH": "/bin"},
        labels={labels.PLATFORM: PLATFORM},
        limits=Limits(1, 64 * MIB, shm_bytes=MIB),
        command=("/bin/sh", "-c", "seq 1 500; sleep 1.5; seq 501 1000"),
    )
    job = Background(podman_engine, spec)
    try:
        assert job.heard.first.wait(30)
        (client,) = [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if (line := _read(path)).startswith(b"podman\0") and spec.name.encode() in line and b"\0run\0" in line
        ]
        os.kill(client, signal.SIGKILL)
        heard = job.join()
        assert [int(line) for line in bytes(heard.stdout).splitlines()] == list(range(1, 1001))
        assert ended(podman_engine, spec).exit_code == 0
    finally:
        podman_engine.remove(spec.name)


def test_a_container_whose_monitor_was_killed_is_over_without_an_exit_code(
    podman_engine: PodmanEngine, small_image: str
) -> None:
    spec = ContainerSpec(
        name=unique("m"),
        image=small_image,
        env={"PATH": "/bin"},
        labels={labels.PLATFORM: PLATFORM},
        limits=Limits(1, 64 * MIB, shm_bytes=MIB),
        command=("/bin/sh", "-c", "echo up; sleep 60"),
    )
    job = Background(podman_engine, spec)
    try:
        assert job.heard.first.wait(30)
        facts = podman_engine.inspect_raw(spec.name)
        assert facts is not None
        os.kill(facts["State"]["ConmonPid"], signal.SIGKILL)
        os.kill(facts["State"]["Pid"], signal.SIGKILL)
        job.join()
        status = podman_engine.inspect(spec.name)
        assert status is not None
        assert (status.running, status.exit_code, status.pid) == (False, None, None)
    finally:
        podman_engine.remove(spec.name)
    assert podman_engine.inspect(spec.name) is None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _reader_process(engine: Engine, spec: ContainerSpec) -> subprocess.Popen[bytes]:
    """run() in another process that prints what it hears, as an actor that will be killed."""
    made = (
        f"DockerEngine({engine.host!r}, folder=Path({str(engine.folder)!r}))"
        if isinstance(engine, DockerEngine)
        else f"PodmanEngine({engine.args!r}, folder=Path({str(engine.folder)!r}))"
    )
    code = f"""
        import pickle, sys
        from pathlib import Path
        from mhs_ray.engines.docker import DockerEngine
        from mhs_ray.engines.podman import PodmanEngine
        spec = pickle.loads(bytes.fromhex({pickle.dumps(spec).hex()!r}))
        def out(stream, data):
            sys.stdout.buffer.write(data); sys.stdout.buffer.flush()
        {made}.run(spec, out, lambda status: None)
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)


def test_an_ended_container_delivers_its_log_again(engine: Engine, make: Callable[..., ContainerSpec]) -> None:
    spec = make("echo one; echo two >&2; printf three; exit 5")
    run(engine, spec)
    again = run(engine, spec)
    assert bytes(again.stdout) == b"one\nthree"
    assert bytes(again.stderr) == b"two\n"
    assert len(again.started) == 1
    assert ended(engine, spec).exit_code == 5


def test_a_container_with_other_labels_is_never_adopted(engine: Engine, make: Callable[..., ContainerSpec]) -> None:
    spec = make("echo mine")
    run(engine, spec)
    with pytest.raises(EngineError, match="other labels"):
        run(engine, replace(spec, labels={**spec.labels, labels.ATTEMPT: "2"}))
    assert engine.inspect(spec.name) is not None


@pytest.mark.parametrize("program", ["/no/such/program", "nosuchprogram", "/etc/passwd"])
def test_a_program_that_cannot_be_executed_is_the_images_fault(
    engine: Engine, make: Callable[..., ContainerSpec], program: str
) -> None:
    with pytest.raises(ExecError, match="ENTRYPOINT"):
        run(engine, make([program]))


def test_a_programs_own_127_is_an_exit_code(engine: Engine, make: Callable[..., ContainerSpec]) -> None:
    spec = make("nosuchprogram")
    heard = run(engine, spec)
    assert ended(engine, spec).exit_code == 127
    assert b"not found" in heard.stderr


def test_an_image_that_is_not_there_is_the_engines_failure(engine: Engine, make: Callable[..., ContainerSpec]) -> None:
    with pytest.raises(EngineError) as caught:
        run(engine, make("true", image="localhost/nothere:1"))
    assert not isinstance(caught.value, ExecError)


SYSCALLS = """
import ctypes, errno, os, subprocess, threading
libc = ctypes.CDLL(None, use_errno=True)
def refused(number, *args):
    ctypes.set_errno(0)
    done = libc.syscall(number, *args)
    if number == 56 and done == 0:
        os._exit(0)
    return errno.errorcode.get(ctypes.get_errno(), "?") if done < 0 else "done"
calls = {
    "unshare": (272, 0x10000000), "setns": (308, 0, 0), "mount": (165, b"none", b"/tmp", b"tmpfs", 0, None),
    "umount2": (166, b"/tmp", 0), "pivot_root": (155, b"/", b"/"), "chroot": (161, b"/"), "io_uring": (425, 8, None),
    "bpf": (321, 0, None, 0), "ptrace": (101, 16, 1, 0, 0), "process_vm_readv": (310, 1, 0, 0, 0, 0, 0),
    "keyctl": (250, 0, 0), "userfaultfd": (323, 0), "perf_event_open": (298, None, 0, 0, 0, 0),
    "mknod": (133, b"/tmp/d", 0o20666, 0x0103), "clone-newuser": (56, 0x10000011, 0, 0, 0, 0),
    "move_mount": (429, 0, 0, 0, 0, 0),
}
for name, call in calls.items():
    print(name, refused(*call), flush=True)
done = []
thread = threading.Thread(target=done.append, args=(1,)); thread.start(); thread.join()
print("works", len(done), subprocess.run(["/bin/echo", "child"], capture_output=True).stdout.decode().strip())
"""


def test_system_calls_that_lead_out_are_refused_and_ordinary_ones_work(
    engine: Engine, make: Callable[..., ContainerSpec]
) -> None:
    heard = run(engine, make(["/usr/local/bin/python3", "-c", SYSCALLS]))
    *refused, works = bytes(heard.stdout).decode().splitlines()
    assert [line for line in refused if not line.endswith(" EPERM")] == []
    assert len(refused) == 16
    assert works == "works 1 child"


def test_the_root_file_system_is_read_only_and_tmpfs_is_sized(
    engine: Engine, make: Callable[..., ContainerSpec]
) -> None:
    script = (
        "touch /x /app/x /run/x /var/x 2>&1; touch /tmp/ok && echo tmp; "
        "head -c 4000000 /dev/zero > /tmp/big 2>/dev/null || echo full; cat /proc/self/status"
    )
    heard = run(engine, make(script, tmpfs={"/tmp": 2 * MIB}))
    text = bytes(heard.stdout).decode()
    assert text.count("touch:") == 4
    assert "tmp\nfull\n" in text
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_root_inside_is_nobody_on_the_node(engine: Engine, make: Callable[..., ContainerSpec]) -> None:
    spec = make("id -u; sleep 60")
    job = Background(engine, spec)
    assert job.heard.first.wait(30)
    pid = job.heard.started[0].pid
    assert Path(f"/proc/{pid}").stat().st_uid == engine.info().host_uid != 0
    inside = bytes(job.heard.stdout).decode().strip()
    assert inside == ("0" if engine.info().user_namespace else str(engine.info().host_uid))
    engine.remove(spec.name)
    job.join()


def test_a_writable_mount_is_written_by_the_host_uid_and_a_read_only_one_not(
    engine: Engine, make: Callable[..., ContainerSpec], tmp_path: Path
) -> None:
    scratch, fixed = tmp_path / "a, b", tmp_path / "fixed"
    scratch.mkdir()
    fixed.mkdir(mode=0o777)
    info = engine.info()
    os.chown(scratch, info.host_uid, info.host_gid)
    spec = make(
        "touch /scratch/made; touch /fixed/made",
        mounts=[Mount(scratch, "/scratch", read_only=False), Mount(fixed, "/fixed")],
        tmpfs={},
    )
    heard = run(engine, spec)
    assert (scratch / "made").stat().st_uid == info.host_uid
    assert list(fixed.iterdir()) == []
    assert b"Read-only" in heard.stderr


def test_a_fork_bomb_is_held_and_removed(engine: Engine, make: Callable[..., ContainerSpec]) -> None:
    code = """
        import os, time
        made = 0
        try:
            while True:
                if os.fork() == 0:
                    time.sleep(600)
                made += 1
        except OSError:
            print(made, flush=True)
        time.sleep(600)
    """
    spec = make(
        ["/usr/local/bin/python3", "-c", textwrap.dedent(code)], limits=Limits(1, 256 * MIB, pids=40, shm_bytes=MIB)
    )
    job = Background(engine, spec)
    assert job.heard.first.wait(60)
    assert 30 <= int(bytes(job.heard.stdout)) < 40
    used = usage.sample(job.heard.started[0].pid or 0)
    assert used is not None
    assert used.pids is not None
    assert used.pids <= 40
    engine.remove(spec.name)
    job.join()


def test_more_than_the_node_has_is_clamped(engine: Engine, make: Callable[..., ContainerSpec]) -> None:
    spec = make("echo ran", limits=Limits(cpus=512, memory_bytes=1 << 50, open_files=1 << 20))
    assert bytes(run(engine, spec).stdout) == b"ran\n"


def test_a_container_without_a_network_has_only_loopback(engine: Engine, make: Callable[..., ContainerSpec]) -> None:
    heard = run(engine, make("cat /proc/net/dev"))
    interfaces = [line.split(":")[0].strip() for line in bytes(heard.stdout).decode().splitlines()[2:]]
    assert interfaces == ["lo"]


def test_a_model_joins_the_network_of_its_pause_container(engine: Engine, make: Callable[..., ContainerSpec]) -> None:
    pause = make(
        PAUSE_COMMAND,
        image=ensure_pause_image(engine),
        labels={labels.PLATFORM: PLATFORM, labels.ROLE: labels.ROLE_PAUSE},
        tmpfs={},
    )
    waiting = Background(engine, pause)
    assert waiting.heard.running.wait(30)
    pid = waiting.heard.started[0].pid
    heard = run(engine, make("stat -L -c %i /proc/self/ns/net", network=f"container:{pause.name}"))
    assert int(bytes(heard.stdout)) == Path(f"/proc/{pid}/ns/net").stat().st_ino
    engine.stop(pause.name, 5)
    waiting.join()


def test_remove_leaves_nothing_and_is_quiet_about_nothing(engine: Engine, make: Callable[..., ContainerSpec]) -> None:
    spec = make("echo up; sleep 60")
    job = Background(engine, spec)
    assert job.heard.first.wait(30)
    pid = job.heard.started[0].pid
    engine.remove(spec.name)
    job.join()
    assert engine.inspect(spec.name) is None
    assert not Path(f"/proc/{pid}").exists()
    assert spec.name not in [c.name for c in engine.containers(labels.PLATFORM)]
    engine.remove(spec.name)
    engine.stop(spec.name, 1)
    assert engine.inspect(spec.name) is None


def test_labels_of_an_image_never_win(
    engine: Engine, make: Callable[..., ContainerSpec], small_image: str, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text(
        f"FROM {small_image}\nLABEL mhs.job=999 mhs.attempt=9 mhs.platform=other\n"
        "ENV LD_PRELOAD=/evil.so NVIDIA_VISIBLE_DEVICES=all\n"
        'VOLUME /data\nSTOPSIGNAL SIGCONT\nHEALTHCHECK --interval=1s CMD ["/bin/touch","/tmp/healthy"]\n'
    )
    tag = "localhost/mhs-spoof:test"
    image_tools(engine).build(tmp_path, tag)
    spec = make(
        "touch /data/x; sleep 2; ls /tmp; env; sleep 60",
        image=tag,
        labels={labels.PLATFORM: PLATFORM, labels.JOB: "7"},
    )
    job = Background(engine, spec)
    while b"HOME" not in job.heard.stdout:
        assert job.heard.running.wait(30)
        time.sleep(0.05)
    status = engine.inspect(spec.name)
    assert status is not None
    assert (status.labels["mhs.job"], status.labels["mhs.attempt"], status.labels["mhs.platform"]) == (
        "7",
        "",
        PLATFORM,
    )
    assert engine.containers("mhs.job=999") == []
    text = bytes(job.heard.stdout)
    assert b"healthy" not in text
    assert b"evil" not in text
    assert b"NVIDIA_VISIBLE_DEVICES=void" in text
    began = time.monotonic()
    engine.stop(spec.name, 30)
    job.join()
    assert time.monotonic() - began < 20


def test_the_reaper_removes_what_nobody_owns(engine: Engine, make: Callable[..., ContainerSpec]) -> None:
    mine, lost = make("sleep 60"), make("sleep 60", labels={labels.PLATFORM: PLATFORM, labels.JOB: "8"})
    jobs = [Background(engine, mine), Background(engine, lost)]
    for job in jobs:
        assert job.heard.running.wait(30)
    label = f"{labels.PLATFORM}={PLATFORM}"
    assert {c.name for c in engine.containers(label)} >= {mine.name, lost.name}
    assert lost.name in reaper.reap(engine, label, keep=lambda status: status.name == mine.name)
    assert [c.name for c in engine.containers(label)] == [mine.name]
    engine.remove(mine.name)
    for job in jobs:
        job.join()


def test_building_with_an_argument_and_tagging(engine: Engine, small_image: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        'ARG BASE\nFROM ${BASE}\nRUN echo built > /app/made\nCMD ["/bin/cat", "/app/made"]\n'
    )
    tools = image_tools(engine)
    made = tools.build(tmp_path, "localhost/mhs-built:1", {"BASE": small_image})
    tools.tag("localhost/mhs-built:1", "localhost/mhs-built:2")
    assert tools.image_id("localhost/mhs-built:2") == made
    assert tools.image_id("localhost/mhs-nothere:1") is None
    (tmp_path / "Dockerfile").write_text(f"FROM {small_image}\nRUN exit 3\n")
    with pytest.raises(EngineError, match="build"):
        tools.build(tmp_path, "localhost/mhs-built:3")


def test_a_default_runtime_that_cannot_start_containers_is_passed_over(
    podman_engine: PodmanEngine, small_image: str, tmp_path: Path
) -> None:
    broken = tmp_path / "crun"
    broken.write_text("#!/bin/sh\necho 'crun: this cgroup layout is not for me' >&2\nexit 1\n")
    broken.chmod(0o755)
    found = PodmanEngine((*podman_engine.args, f"--runtime={broken}"), folder=tmp_path)
    assert found.info().runtime in ("runc", "crun")
    assert found.capabilities().runtime == found.info().runtime
    assert found.info().user_namespace
    spec = ContainerSpec(
        name=unique("r"),
        image=small_image,
        env={"PATH": "/bin"},
        labels={labels.PLATFORM: PLATFORM},
        limits=Limits(1, 64 * MIB, shm_bytes=MIB),
        command=("/bin/echo", "ran"),
    )
    assert bytes(run(found, spec).stdout) == b"ran\n"
    podman_engine.remove(spec.name)
