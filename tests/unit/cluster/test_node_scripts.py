"""The scripts of a node, run as far as a machine without AWS and NVIDIA lets them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BOOTSTRAP, WITH_ENV = ROOT / "cluster/aws/bootstrap", ROOT / "cluster/aws/with-env"


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """What `ray up` copies to a node."""
    folder = tmp_path / "from"
    shutil.copytree(ROOT / "cluster", folder / "cluster")
    (folder / "dist").mkdir()
    shutil.copy(ROOT / "requirements.lock", folder / "dist")
    (folder / "dist" / "mhs_ray-0.1.0-py3-none-any.whl").write_bytes(b"x")
    return folder


def bootstrap(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(BOOTSTRAP), *map(str, arguments)], capture_output=True, text=True, check=False)


def files(root: Path) -> dict[str, str]:
    return {str(f.relative_to(root)): f.read_text() for f in root.rglob("*") if f.is_file()}


def test_the_scripts_have_no_fault_that_shellcheck_knows(given: Path, tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    bootstrap("--from", given, "--root", tmp_path / "root")
    scripts = [BOOTSTRAP, WITH_ENV, tmp_path / "root/usr/local/sbin/mhs-disk"]
    done = subprocess.run(["shellcheck", "-s", "sh", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_dry_run_says_everything_and_changes_nothing(given: Path, tmp_path: Path) -> None:
    before = files(given)
    done = bootstrap("--from", given, "--root", tmp_path / "root", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "root").exists()
    assert files(given) == before
    for line in (
        "> /etc/systemd/system/mhs-cdi.service",
        "> /usr/local/sbin/mhs-disk",
        "+ systemctl enable mhs-cdi.service",
    ):
        assert line in done.stdout.splitlines()
    assert "pip install --quiet --require-hashes" in done.stdout


def test_the_files_of_a_node_are_written_and_a_second_run_leaves_them(given: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert bootstrap("--from", given, "--root", root).returncode == 0
    first = files(root)
    assert "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml" in first["etc/systemd/system/mhs-cdi.service"]
    assert "accept-nvidia-visible-devices-envvar-when-unprivileged=false" in first["etc/systemd/system/mhs-cdi.service"]
    assert "containers:2147483647:2147483648" in first["etc/subuid"]
    assert "copytruncate" in first["etc/logrotate.d/mhs-ray"]
    assert "SystemMaxUse=1G" in first["etc/systemd/journald.conf.d/50-mhs.conf"]
    assert "nofile 65536" in first["etc/security/limits.d/50-mhs.conf"]
    assert (root / "usr/local/sbin/mhs-disk").stat().st_mode & 0o777 == 0o755
    again = bootstrap("--from", given, "--root", root)
    assert (again.returncode, files(root)) == (0, first)
    assert ">" not in again.stdout
    assert "pip" not in again.stdout


def test_a_new_wheel_is_installed_anew(given: Path, tmp_path: Path) -> None:
    bootstrap("--from", given, "--root", tmp_path / "root")
    (given / "dist" / "mhs_ray-0.1.0-py3-none-any.whl").write_bytes(b"y")
    assert "pip install" in bootstrap("--from", given, "--root", tmp_path / "root").stdout


def test_podman_takes_the_configuration_that_is_written(given: Path, tmp_path: Path) -> None:
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed")
    bootstrap("--from", given, "--root", tmp_path / "root")
    config = tmp_path / "root/etc/containers/containers.conf.d/50-mhs.conf"
    wanted = "{{.Host.OCIRuntime.Name}} {{.Host.LogDriver}} {{.Host.EventLogger}}"
    with tempfile.TemporaryDirectory(prefix="p-") as short:  # podman takes no longer one
        storage = ["--root", f"{short}/s", "--runroot", f"{short}/r", "--storage-driver", "vfs"]
        done = subprocess.run(
            ["podman", *storage, "info", "--format", wanted],
            env={**os.environ, "CONTAINERS_CONF": str(config)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.stdout.split() == ["runc", "k8s-file", "file"], done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--from is missing"),
        (("--form", "x"), "no such option: --form"),
        (("--from", "/nowhere"), "is missing; --from must"),
    ],
)
def test_wrong_use_is_told(arguments: tuple[str, ...], words: str) -> None:
    done = bootstrap(*arguments)
    assert done.returncode != 0
    assert words in done.stderr


def test_a_missing_wheel_is_told_with_what_makes_it(given: Path, tmp_path: Path) -> None:
    next((given / "dist").glob("*.whl")).unlink()
    done = bootstrap("--from", given, "--root", tmp_path / "root")
    assert done.returncode == 1
    assert "uv build --wheel" in done.stderr


def with_env(role: str, *command: str, file: Path = ROOT / "cluster/aws/mhs.env", **more: str) -> dict[str, str]:
    env = {"PATH": os.environ["PATH"], "MHS_ENV_FILE": str(file), **more}
    command = command or ("env",)
    done = subprocess.run([str(WITH_ENV), role, *command], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def test_a_worker_has_the_settings_and_no_way_to_the_secrets() -> None:
    found = with_env("worker", RAY_HEAD_IP="10.0.0.9")
    assert found["MHS_API__INTERNAL_URL"] == "http://10.0.0.9:8080"
    assert found["MHS_CLUSTER__INSTANCE_TYPES"].startswith('["g4dn.xlarge",')
    assert found["RAY_AUTH_MODE"] == "token"
    assert not [name for name in found if "SECRET" in name]
    assert "RAY_gcs_storage" not in found


def test_the_head_keeps_its_tables_in_rocksdb_or_in_redis() -> None:
    found = with_env("head")
    assert (found["RAY_gcs_storage"], found["RAY_gcs_storage_path"]) == ("rocksdb", "/var/lib/mhs/gcs")
    assert found["RAY_enable_autoscaler_v2"] == "1"
    assert found["MHS_SECRETS__AWS_SECRET"] == "mhs/prod"
    assert found["MHS_API__INTERNAL_URL"] == f"http://{found['MHS_CLUSTER__ADDRESS']}:8080"
    redis = with_env("head", RAY_REDIS_ADDRESS="redis.internal:6379")
    assert "RAY_gcs_storage" not in redis
    assert redis["RAY_external_storage_namespace"] == "mhs"


@pytest.mark.parametrize(
    ("role", "text", "words"),
    [
        ("worker", "MHS_HOME=/x\n", "RAY_HEAD_IP"),
        ("king", "MHS_HOME=/x\n", "neither head nor worker"),
        ("head", "MHS HOME\n", "not NAME=VALUE"),
    ],
)
def test_a_wrong_role_or_file_is_told(tmp_path: Path, role: str, text: str, words: str) -> None:
    (tmp_path / "env").write_text(text)
    done = subprocess.run(
        [str(WITH_ENV), role, "env"], env={"PATH": os.environ["PATH"], "MHS_ENV_FILE": str(tmp_path / "env")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert words in done.stderr
