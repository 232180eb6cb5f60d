"""What the engines are told, without an engine."""

from __future__ import annotations

import csv
import io
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from mhs_ray.domain.errors import EngineError, ExecError
from mhs_ray.engines import labels, seccomp
from mhs_ray.engines.capabilities import Capabilities, cdi_gpus, private_folder, remembered
from mhs_ray.engines.docker_args import create_args
from mhs_ray.engines.envfile import split_env
from mhs_ray.engines.execfail import exec_failure, sandbox_env
from mhs_ray.engines.podman_args import runtime_args, sandbox_args
from mhs_ray.ports import ContainerSpec, Limits, Mount

CAPS = Capabilities(
    version="5.0.0",
    runtime_name="crun",
    runtime=None,
    rootless=False,
    cgroup_version=2,
    user_namespace=True,
    uid_map=True,
    user=None,
    init=True,
    open_files=20_000,
    processes=None,
    limits=("cpu", "memory", "pids"),
    cpus=4,
    memory_bytes=8 << 30,
    gpus=(),
    missing=(),
    host_uid=200_000,
    host_gid=200_000,
)
SPEC = ContainerSpec(
    name="job-7-1",
    image="localhost/i:1",
    env={"TOKEN": "secret-value"},
    labels={labels.JOB: "7"},
    limits=Limits(cpus=16, memory_bytes=64 << 30),
)


def podman(spec: ContainerSpec = SPEC, caps: Capabilities = CAPS) -> list[str]:
    return sandbox_args(spec, caps, Path("/p/seccomp.json"))


def after(args: list[str], flag: str) -> list[str]:
    return [args[i + 1] for i, word in enumerate(args) if word == flag]


def test_limits_never_exceed_the_node() -> None:
    args = podman()
    assert after(args, "--cpus") == ["4"]
    assert after(args, "--memory") == after(args, "--memory-swap") == [str(8 << 30)]
    assert "nofile=20000:20000" in after(args, "--ulimit")


def test_limits_that_the_node_cannot_hold_are_not_asked_for() -> None:
    args = podman(caps=replace(CAPS, limits=("pids",), rootless=True, uid_map=False))
    assert not {"--cpus", "--memory", "--memory-swap", "--uidmap"} & set(args)
    assert after(args, "--pids-limit") == ["1024"]


def test_no_environment_value_is_among_the_arguments() -> None:
    assert not any("secret-value" in arg for arg in podman())


def test_a_mount_with_a_comma_stays_one_mount() -> None:
    (text,) = after(podman(replace(SPEC, mounts=[Mount(Path('/a, "b"'), "/in")])), "--mount")
    (fields,) = csv.reader(io.StringIO(text))
    assert fields == ["type=bind", 'source=/a, "b"', "target=/in", "bind-propagation=rprivate", "ro=true"]


def test_gpus_are_named_to_each_engine_in_its_way() -> None:
    spec = replace(SPEC, gpus=("0", "GPU-1a"))
    assert after(podman(spec), "--device") == ["nvidia.com/gpu=0", "nvidia.com/gpu=GPU-1a"]
    (request,) = create_args(spec, CAPS, "1.41", ())["host_config"]["DeviceRequests"]
    assert request["DeviceIDs"] == ["0", "GPU-1a"]
    assert request["Capabilities"] == [["gpu"]]
    assert "--device" not in podman()
    assert not create_args(SPEC, CAPS, "1.41", ())["host_config"].get("DeviceRequests")


def test_without_gpus_no_driver_library_shows_one() -> None:
    env = sandbox_env(replace(SPEC, env={"NVIDIA_VISIBLE_DEVICES": "all", "LD_PRELOAD": "/evil.so", "HOME": "/app"}))
    assert env == {"NVIDIA_VISIBLE_DEVICES": "void", "LD_PRELOAD": "", "HOME": "/app"}


def test_declared_volumes_are_no_way_to_the_disk_on_docker() -> None:
    spec = replace(SPEC, tmpfs={"/tmp": 1 << 20}, mounts=[Mount(Path("/x"), "/given")])
    tmpfs = create_args(spec, CAPS, "1.41", ["/data", "/given", "/tmp"])["host_config"]["Tmpfs"]
    assert set(tmpfs) == {"/tmp", "/data"}
    assert "size=1048576" in tmpfs["/tmp"]


def test_a_container_without_a_user_namespace_runs_as_nobody_special() -> None:
    assert after(podman(caps=replace(CAPS, uid_map=False, user=10_001)), "--user") == ["10001:10001"]
    assert create_args(SPEC, replace(CAPS, user=10_001), "1.41", ())["user"] == "10001:10001"
    assert create_args(SPEC, CAPS, "1.41", ())["user"] is None


def test_a_runtime_of_the_spec_wins_over_the_nodes() -> None:
    assert runtime_args("runsc", replace(CAPS, runtime="runc")) == ("--runtime", "runsc")
    assert runtime_args(None, replace(CAPS, runtime="runc")) == ("--runtime", "runc")
    assert runtime_args(None, CAPS) == ()


def test_every_platform_label_is_set_even_when_not_given() -> None:
    assert sorted(after(podman(), "--label")) == ["mhs.attempt=", "mhs.job=7", "mhs.platform=", "mhs.role="]
    assert not labels.carried(SPEC.labels, {"mhs.job": "7", "mhs.attempt": "", "mhs.platform": "x", "mhs.role": ""})


def test_the_environment_takes_the_way_that_keeps_every_byte() -> None:
    passed = split_env({"A": "plain # = ok ", "B": "two\nlines", "C": '"q"', "LD_LIBRARY_PATH": "/lib", "D": "cr\r"})
    assert passed.lines == "A=plain # = ok \nLD_LIBRARY_PATH=/lib\n"
    assert passed.names == ("B", "C", "D")
    assert passed.client == {"B": "two\nlines", "C": '"q"', "D": "cr\r"}
    assert "two" not in repr(passed)


@pytest.mark.parametrize("name", ["PATH", "LD_AUDIT", "HOME", "GODEBUG", "CONTAINERS_CONF", "XDG_RUNTIME_DIR"])
def test_a_job_cannot_steer_the_podman_process_by_a_name_it_obeys(name: str) -> None:
    with pytest.raises(EngineError, match=name) as caught:
        split_env({name: "a\nsecret"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        "Error: crun: executable file `nothere` not found in $PATH: No such file or directory: OCI runtime attempted "
        "to invoke a command that was not found",
        'Error: runc: runc create failed: unable to start container process: exec: "/x": permission denied',
        'OCI runtime create failed: unable to start container process: exec: "/x": stat /x: no such file or directory',
        "runc: exec /app/main: exec format error",
    ],
)
def test_a_runtimes_word_about_the_program_is_understood(words: str) -> None:
    failure = exec_failure("podman", "run", words.encode(), by_init=False)
    assert isinstance(pickle.loads(pickle.dumps(failure)), ExecError)


def test_other_failures_are_not_blamed_on_the_program() -> None:
    words = b"Error: runc: error setting rlimit type 7: operation not permitted: OCI permission denied"
    assert exec_failure("podman", "run", words, by_init=False) is None
    mount = b"Error: crun: cannot stat `/x`: No such file: OCI runtime attempted to invoke a command that was not found"
    assert exec_failure("podman", "run", mount, by_init=False) is None
    assert exec_failure("podman", "run", b"hello\n[FATAL tini (7)] exec x failed: No\n", by_init=True) is None


def test_the_shipped_profile_allows_nothing_that_is_denied() -> None:
    profile = json.loads(seccomp.profile_text())
    allowed = {n for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for n in rule["names"]}
    assert not allowed & {*seccomp.DENIED, "clone3", "socketcall"}
    assert {"read", "clone", "futex", "execve", "openat", "socket"} <= allowed
    (clone,) = [r for r in profile["syscalls"] if r["names"] == ["clone"] and r["action"] == "SCMP_ACT_ALLOW"]
    assert (clone["args"][0]["value"], clone["args"][0]["valueTwo"]) == (0x7E020000, 0)


def test_making_the_profile_again_changes_nothing() -> None:
    profile = json.loads(seccomp.profile_text())
    again = seccomp.strict({**profile, "syscalls": [r for r in profile["syscalls"] if r["names"][0] not in {"clone"}]})
    rules = {json.dumps(rule, sort_keys=True) for rule in profile["syscalls"]}
    assert {json.dumps(rule, sort_keys=True) for rule in again["syscalls"]} == rules


def test_what_a_node_can_do_is_found_out_once(tmp_path: Path) -> None:
    probes: list[int] = []

    def probe() -> Capabilities:
        probes.append(1)
        return CAPS

    assert remembered(tmp_path, ("podman", "5.0.0"), probe) == CAPS
    assert remembered(tmp_path, ("podman", "5.0.0"), probe) == CAPS
    assert len(probes) == 1
    remembered(tmp_path, ("podman", "5.1.0"), probe)
    assert len(probes) == 2


def test_a_damaged_memory_is_found_out_again(tmp_path: Path) -> None:
    remembered(tmp_path, 1, lambda: CAPS)
    (file,) = tmp_path.iterdir()
    file.write_text('{"version": 1}')
    assert remembered(tmp_path, 1, lambda: CAPS) == CAPS


def test_a_folder_that_others_can_write_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = private_folder()
    assert mine.stat().st_mode & 0o777 == 0o700
    mine.chmod(0o777)
    assert private_folder() != mine


def test_gpus_of_a_cdi_specification_are_listed(tmp_path: Path) -> None:
    (tmp_path / "nvidia.yaml").write_text(
        'cdiVersion: "0.5.0"\nkind: nvidia.com/gpu\ndevices:\n- name: "0"\n  containerEdits: {}\n'
        "- name: GPU-8a1\n  containerEdits: {}\n- name: all\n  containerEdits: {}\n"
    )
    (tmp_path / "other.json").write_text('{"kind": "example.com/x", "devices": [{"name": "q"}]}')
    assert cdi_gpus((tmp_path, tmp_path / "none")) == ("0", "GPU-8a1")


def test_the_nodes_own_sys_is_covered_unless_the_sandbox_brings_one() -> None:
    def masked(spec: ContainerSpec, caps: Capabilities = CAPS) -> set[str]:
        (value,) = [a for a in after(podman(spec, caps), "--security-opt") if a.startswith("mask=")]
        return set(value.removeprefix("mask=").split(":"))

    joined = replace(SPEC, network="ns:/run/job/net")
    assert {"/sys/class/net", "/sys/fs/cgroup", "/sys/block", "/proc/cmdline", "/proc/keys"} <= masked(joined)
    own = replace(joined, mounts=[Mount(Path("/srv/sys"), "/sys")])
    assert "/sys/class/net" not in masked(own)
    assert "/sys/block" in masked(own)
    assert not {"/proc/driver", "/sys/bus", "/sys/module", "/sys/devices/system"} & masked(joined)  # CUDA needs them
