"""Containers that try to become somebody else, to see the node, or to pass for the platform."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mhs_ray.attempt.runner import AttemptRunner
from mhs_ray.engines import labels
from tests.e2e.hostile.arena import Arena

pytestmark = pytest.mark.engine


def test_system_calls_that_lead_out_are_refused(arena: Arena) -> None:
    program = """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        buffer = ctypes.create_string_buffer(256)
        calls = {"unshare": (272, 0x10000000), "unshare-mount": (272, 0x20000), "mount": (165, b"none", b"/tmp", b"tmpfs", 0, 0),
                 "umount": (166, b"/etc/hosts", 2), "setns": (308, 0, 0), "io_uring": (425, 1, buffer), "bpf": (321, 5, buffer, 48),
                 "ptrace": (101, 0, 0, 0, 0), "keyctl": (250, 0, -3, 0), "add_key": (248, b"user", b"a", b"b", 1, -2),
                 "perf": (298, buffer, 0, -1, -1, 0), "userfaultfd": (323, 0), "chroot": (161, b"/tmp"), "clone3": (435, buffer, 88),
                 "mknod": (133, b"/tmp/node", 0o20666, 0x101), "module": (175, buffer, 0, b""), "reboot": (169, 0, 0, 0, 0),
                 "setuid": (105, 4321), "setgid": (106, 4321), "chown": (92, b"/etc/hosts", 1, 1), "sethostname": (170, b"x", 1),
                 "process_vm_readv": (310, 1, buffer, 1, buffer, 1, 0), "open_by_handle_at": (304, -100, buffer, 0)}
        for name, call in calls.items():
            pid = os.fork()
            if pid == 0:
                code = ctypes.get_errno() if libc.syscall(*call) == -1 else 0
                os._exit(code)
            say("call", name, os.WEXITSTATUS(os.waitpid(pid, 0)[1]))
        for family, kind in ((17, 3), (2, 3), (10, 3), (40, 1), (38, 5)):
            try:
                socket.socket(family, kind, 1 if kind == 3 else 0).close()
                say("socket", family, kind, "open")
            except OSError as error:
                say("socket", family, kind, error.errno)
        sys.exit(7)
    """
    ended = arena.run(program)
    calls = dict(line.split() for line in ended.said("call"))
    assert len(calls) == 23
    # 1 EPERM, 38 ENOSYS, 30 EROFS; 22 EINVAL: an id that its user namespace does not have.
    assert {name: code for name, code in calls.items() if code not in ("1", "38", "30")} == {}
    assert len(ended.said("socket")) == 5
    assert not any(line.endswith("open") for line in ended.said("socket"))
    assert ended.code == "exit-code"


def test_the_container_knows_nothing_of_the_node(arena: Arena) -> None:
    os.environ["MHS_CANARY_OF_THE_NODE"] = "canary-of-the-nodes-environment"
    program = """
        for name in sorted(os.environ):
            say("env", name)
        say("fds", [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if int(n) > 2 and os.path.exists(f"/proc/self/fd/{n}")])
        say("pids", sorted(int(n) for n in os.listdir("/proc") if n.isdigit()))
        say("host", socket.gethostname())
        say("nets", os.listdir("/sys/class/net"), [n for _, n in socket.if_nameindex()])
        say("disks", os.listdir("/sys/block"), open("/proc/partitions").read(), open("/proc/cmdline").read())
        say("text", open("/proc/self/mountinfo").read().count("sock"), os.path.exists("/var/run/docker.sock"))
        say("shadow", os.path.exists("/etc/shadow"), os.path.exists("/var/lib/mhs"))
        say("ran", os.path.exists("/tmp/health-check-ran"))
        sys.exit(7)
    """
    try:
        ended = arena.run(program)
    finally:
        del os.environ["MHS_CANARY_OF_THE_NODE"]
    given = {"HOST", "TASK_ID", "SCAN_ID", "SCAN_URL", "JWT_TOKEN", "DEBUG_FILE_UPLOAD_URL", "PROGRAM", "PYTHONHOME"}
    engines = {"PATH", "HOSTNAME", "TERM", "container", "HOME", "LD_PRELOAD", "NVIDIA_VISIBLE_DEVICES"}
    sandbox = {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"}
    odd = set(ended.said("env")) - given - engines - sandbox
    assert all(name.endswith(("_BUNDLE", "_CERT", "_CERTS", "_FILE", "_CAINFO", "_PATH")) for name in odd), odd
    assert len(ended.said("pids")[0].strip("[]").split(",")) <= 3
    assert ended.said("nets") in (["['lo'] ['lo']"],)
    assert ended.said("disks") == ["[]"]
    assert ended.said("shadow") == ["False False"]
    assert ended.said("host") != [os.uname().nodename]


def test_an_images_own_settings_do_not_count(arena: Arena) -> None:
    seen: dict[str, str] = {}
    order = arena.new_order(
        """
        say("env", repr(os.environ["LD_PRELOAD"]), os.environ["NVIDIA_VISIBLE_DEVICES"], os.environ["HOST"], os.environ["HTTPS_PROXY"])
        time.sleep(1.5)
        say("ran", os.path.exists("/tmp/health-check-ran"))
        sys.exit(7)
        """
    )

    def look() -> None:
        status = arena.engine.inspect(order.container_name)
        assert status is not None
        seen.update(status.labels)

    outcome = AttemptRunner(order, arena.node, gpus=(), on_started=look, echo=lambda _line: None).run()
    arena.end(order, None)
    arena.nothing_is_left()
    assert outcome.exit is not None
    assert outcome.exit.exit_code == 7
    said = "\n".join(outcome.exit.log_tail)
    assert "env '' void app.example.com http://127.0.0.1:3128" in said
    assert "ran False" in said
    assert seen[labels.JOB] == str(order.job_id)
    assert seen[labels.PLATFORM] == order.platform
    assert seen[labels.ROLE] == labels.ROLE_MODEL


def test_links_in_its_outputs_lead_nowhere_on_the_node(arena: Arena, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("of the node")
    program = f"""
        import shutil
        for place in ("/output", "/tmp", "/scratch"):
            for target in ("/etc/passwd", "/etc/shadow", "{precious}", "/proc/1/root/etc/shadow", "/"):
                os.symlink(target, place + "/" + target.replace("/", "_"))
            try:
                os.link("/etc/hosts", place + "/hard")
                say("hard link", place)
            except OSError as error:
                pass
            os.mkfifo(place + "/fifo")  # harmless, and shell scripts need it
            open(place + "/file", "w").close()
        os.chmod("/output", 0o777)
        # The folder of a mounted file is not reached through the file.
        for name in ("/etc/hosts", "/etc/resolv.conf", "/etc/mhs/trust.pem"):
            for act in (lambda: open(name, "w"), lambda: os.unlink(name), lambda: os.rename("/tmp/file", name)):
                try:
                    act()
                    say("changed", name)
                except OSError:
                    pass
        say("answer", post())
    """
    ended = arena.run(program)
    assert ended.code is None
    assert ended.said("hard link") == []
    assert ended.said("changed") == []
    assert precious.read_text() == "of the node"
