"""Listening in other processes' network namespaces."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import mhs_ray
from mhs_ray.domain.errors import SandboxError
from mhs_ray.sandbox.netns import listeners, make_namespace
from mhs_ray.sandbox.scratch import unmount_below

if TYPE_CHECKING:
    from tests.integration.sandbox.conftest import Inside


def net_of(pid: int) -> Path:
    return Path(f"/proc/{pid}/ns/net")


def test_a_socket_listens_inside_only_and_this_process_stays_where_it_was(netns: int) -> None:
    before = Path("/proc/self/ns/net").readlink()
    opened = listeners(net_of(netns), [3128, 443, 3128])
    assert sorted(opened) == [443, 3128]
    assert Path("/proc/self/ns/net").readlink() == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 3128), 2)
    shown = subprocess.run(
        ["nsenter", f"--net=/proc/{netns}/ns/net", sys.executable, "-c", CONNECT], capture_output=True, check=False
    )
    assert shown.stdout == b"ok\n"
    for listener in opened.values():
        listener.close()


CONNECT = "import socket; socket.create_connection(('127.0.0.1', 443), 5); print('ok')"


def test_a_namespace_mounted_at_a_file_has_only_loopback_and_ends_with_the_mount(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not shutil.which("nsenter"):
        pytest.skip("needs root and util-linux for a network namespace")
    before = Path("/proc/self/ns/net").readlink()
    file = tmp_path / "net"
    file.touch()
    make_namespace(file)
    try:
        assert Path("/proc/self/ns/net").readlink() == before
        for listener in listeners(file, [443]).values():
            shown = subprocess.run(
                ["nsenter", f"--net={file}", sys.executable, "-c", CONNECT], capture_output=True, check=False
            )
            assert shown.stdout == b"ok\n"
            listener.close()
        links = ["nsenter", f"--net={file}", "cat", "/proc/net/dev"]
        shown = subprocess.run(links, capture_output=True, check=True)
        assert [line.split(b":")[0].strip() for line in shown.stdout.splitlines()[2:]] == [b"lo"]
    finally:
        unmount_below(file)
    with pytest.raises(SandboxError, match="Invalid argument"):  # an ordinary file again
        listeners(file, [443])


def test_a_namespace_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="cannot make a network namespace at"):
        make_namespace(tmp_path / "no" / "net")


def test_a_process_without_a_network_of_its_own_is_refused() -> None:
    with pytest.raises(SandboxError, match="no network namespace of its own but the node's"):
        listeners(net_of(os.getpid()), [3128])


def test_a_process_that_is_gone_and_a_port_that_is_taken_are_clear_errors(netns: int, inside: Inside) -> None:
    with pytest.raises(SandboxError, match="No such file"):
        listeners(net_of(2**22 - 1), [3128])
    with pytest.raises(SandboxError, match="Address already in use"):
        listeners(net_of(netns), [8080, 3128])


# What follows runs as an ordinary user, as beside a rootless engine.
BECOME = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]

OF_ITS_OWN = """
import os, subprocess, sys
from pathlib import Path
from mhs_ray.sandbox.netns import listeners
holder = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
holder.stdin.write(b"ready\\n"); holder.stdin.flush(); holder.stdout.readline()
try:
    opened = listeners(Path(f"/proc/{holder.pid}/ns/net"), [3128, 443])
    net = ["nsenter", "-U", "-n", "--preserve-credentials", "-t", str(holder.pid), "cat", "/proc/net/tcp"]
    shown = subprocess.run(net, capture_output=True, text=True).stdout
    print(list(opened), os.getuid(), "0100007F:0C38" in shown, "0100007F:01BB" in shown)
except Exception as e:
    print(type(e).__name__, e)
finally:
    holder.kill()
"""

OF_ROOT = """
import sys
from pathlib import Path
from mhs_ray.sandbox.netns import listeners
try: listeners(Path(sys.argv[1]), [3128])
except Exception as e: print(type(e).__name__, e)
"""

AsUser = Callable[..., str]


@pytest.fixture
def as_user() -> Iterator[AsUser]:
    """Returns a function that runs Python code as an ordinary user, who may read our modules but nothing of root's."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv to become an ordinary user")
    package = Path(mhs_ray.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for name in ("__init__", "domain/__init__", "domain/errors"):
            copy_module(package, Path(folder), name)
        for name in ("__init__", "netns", "_netns_helper"):
            copy_module(package, Path(folder), f"sandbox/{name}")
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}

        def run(python: str, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
            command = [*BECOME, python, "-c", code, *arguments]
            return subprocess.run(command, capture_output=True, text=True, env=env, cwd="/", check=False)

        pythons = [sys.executable, "/usr/bin/python3"]
        probe = "import subprocess, sys, mhs_ray.sandbox.netns; subprocess.run([sys.executable, '-c', ''], check=True)"
        usable = [p for p in pythons if Path(p).exists() and run(p, probe).returncode == 0]
        if not usable:
            pytest.skip("no Python that an ordinary user may run")

        def as_user(code: str, *arguments: str) -> str:
            done = run(usable[0], code, *arguments)
            return done.stdout + done.stderr

        yield as_user


def copy_module(package: Path, folder: Path, name: str) -> None:
    source = (package / name).with_suffix(".py")
    target = (folder / "mhs_ray" / name).with_suffix(".py")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def test_a_rootless_engines_user_reaches_the_namespaces_it_owns(as_user: AsUser) -> None:
    shown = as_user(OF_ITS_OWN, "unshare", "--user", "--map-root-user", "--net", "cat")
    assert shown == "[3128, 443] 65534 True True\n"


def test_a_namespace_below_another_one_of_the_user_is_reached_too(as_user: AsUser) -> None:
    nested = ["unshare", "--user", "--map-root-user", "unshare", "--user", "--map-root-user", "--net", "cat"]
    assert as_user(OF_ITS_OWN, *nested) == "[3128, 443] 65534 True True\n"


def test_a_namespace_of_somebody_else_is_an_error_that_says_who_must_run_this(as_user: AsUser, netns: int) -> None:
    shown = as_user(OF_ROOT, str(net_of(netns)))
    assert shown.startswith("SandboxError cannot listen in the network behind /proc/")
    assert "must be root or, with a rootless engine, the user who owns it (it is user 65534)" in shown
