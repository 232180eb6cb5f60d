"""The platform's own keys as private files."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mhs_ray.domain.errors import ConflictError
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.platform.keys import Keys, load_keys, write_private
from mhs_ray.store.sql.secrets import Vault


def test_keys_are_made_once_private_and_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "keys"
    first = load_keys(folder)
    assert load_keys(folder) == first
    assert folder.stat().st_mode & 0o777 == 0o700
    files = [f for f in folder.iterdir() if not f.name.startswith(".")]
    assert {f.stat().st_mode & 0o777 for f in files} == {0o600}
    secrets = [first.client_secret, first.registry_events, first.ray, first.blobs.hex(), first.vault[0].decode()]
    assert not [s for s in secrets if s in repr(first)]
    assert len(set(secrets)) == len(secrets)


def test_processes_that_start_at_once_agree(tmp_path: Path) -> None:
    found: list[Keys] = []
    threads = [threading.Thread(target=lambda: found.append(load_keys(tmp_path / "keys"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert all(keys == found[0] for keys in found)


def test_rotated_keys_are_taken_in_their_order(tmp_path: Path) -> None:
    keys = load_keys(tmp_path)
    newer = Vault.new_key()
    write_private(tmp_path / "vault", newer + b"\n" + keys.vault[0] + b"\n")
    write_private(tmp_path / "tokens", f"k1:{keys.tokens['k1'].hex()}\nk2:{'ab' * 32}\n".encode())
    rotated = load_keys(tmp_path)
    assert rotated.vault == (newer, keys.vault[0])
    assert list(rotated.tokens) == ["k1", "k2"]
    assert Vault(rotated.vault).open(Vault(keys.vault).seal({"a": 1})) == {"a": 1}


def test_a_private_file_is_replaced_whole_and_stays_private(tmp_path: Path) -> None:
    path = tmp_path / "x" / "secret"
    for data in (b"one", b"two"):
        write_private(path, data)
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (data, 0o600)
    assert [f.name for f in path.parent.iterdir()] == ["secret"]


def test_endpoints_are_found_again_and_their_absence_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match="start it with `mhs up`"):
        Endpoints.load(tmp_path)
    endpoints = Endpoints("http://a", "http://b", "c:1", "d", "e")
    endpoints.save(tmp_path)
    assert Endpoints.load(tmp_path) == endpoints
