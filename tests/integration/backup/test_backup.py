"""Backup while the platform is written to, restore into an empty home: on SQLite and folders, PostgreSQL and S3."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from mhs_ray.domain.errors import ConflictError
from mhs_ray.domain.settings import Settings
from mhs_ray.domain.states import JobState
from mhs_ray.platform.backup import BackupError, backup, restore
from mhs_ray.platform.secrets import new_secrets
from mhs_ray.services.core import Core, build_core
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.containers import open_env
from tests.core_fixtures import ENDPOINTS, core_in, world_of
from tests.pg_fixtures import Postgres, postgres, why_no_postgres
from tests.s3_fixtures import S3Server, seaweedfs


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def pg() -> Iterator[Postgres]:
    if reason := why_no_postgres():
        pytest.skip(reason)
    with postgres() as server:
        yield server


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with seaweedfs() as server:
        yield server


@pytest.fixture(params=["embedded", "production"])
def places(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[dict[str, Any], ...]]:
    """Settings of the platform that is backed up, and of the one that it is restored into."""
    if request.param == "embedded":
        yield {}, {}
        return
    server: Postgres = request.getfixturevalue("pg")
    storage: S3Server = request.getfixturevalue("s3")
    found = []
    for bucket in ("before", "after"):
        blobs = storage.blobs(bucket)
        for info in list(blobs.list("")):
            blobs.delete(info.key)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", storage.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", storage.secret_key)
        found.append(
            {
                "database_url": server.url(server.create()),
                "blobs": {"kind": "s3", "bucket": bucket, "endpoint_url": storage.endpoint, "min_free": 0},
            }
        )
    yield tuple(found)


def fill(core: Core) -> int:
    """Make a running job with secrets, a result, a log and a registry's image; return its id."""
    world = world_of(core)
    company = world.company("North")
    job = world.running(company)
    core.blobs.put(f"jobs/{job.id}/attempts/1/log", b"line\n" * 1000)
    core.blobs.put("scans/1/slide", b"\x00" * 100_000)
    image = core.settings.home / "registry" / "docker" / "registry" / "v2" / "blobs" / "data"
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(b"layer")
    return job.id


def everything(core: Core) -> dict[str, list[Any]]:
    with core.db.read() as conn:
        return {name: [tuple(r) for r in conn.execute(sa.select(table).order_by(*table.primary_key))]
                for name, table in t.metadata.tables.items()}  # fmt: skip


def test_what_was_backed_up_is_there_again_with_its_secrets(tmp_path: Path, places: tuple[dict[str, Any], ...]) -> None:
    first, second = places
    with core_in(tmp_path / "one", **first) as core:
        job = fill(core)
        before = everything(core)
        env = open_env(core.db, core.jobs.jobs.row(job).env)
        keys = core.keys
        done = backup(core.settings, tmp_path / "copy", quiet)
    assert (done.blobs, done.blob_bytes, done.images) == (2, 105_000, True)
    assert (tmp_path / "copy").stat().st_mode & 0o77 == 0, "keys lie in it"
    home = tmp_path / "two"
    settings = Settings(**{"blobs": {"min_free": 0}, **second, "home": home})
    restore(settings, tmp_path / "copy", quiet)
    with core_in(home, **second) as core:
        assert everything(core) == before
        assert core.keys == keys
        assert open_env(core.db, core.jobs.jobs.row(job).env) == env
        with core.blobs.open(f"jobs/{job}/attempts/1/log") as log:
            assert log.read() == b"line\n" * 1000
        assert (home / "registry/docker/registry/v2/blobs/data").read_bytes() == b"layer"
        # Its attempt is gone with the old platform: the dispatcher gives it up and runs it again.
        assert core.jobs.jobs.find(job).state is JobState.RUNNING
        with pytest.raises(ConflictError):
            restore(settings, tmp_path / "copy", quiet)


def test_a_backup_under_way_is_of_one_moment_and_stops_nobody(tmp_path: Path) -> None:
    with core_in(tmp_path / "one") as core:
        world = world_of(core)
        company = world.company()
        algorithm = world.algorithm(company)
        over = threading.Event()
        written = 0

        def work() -> None:
            nonlocal written
            while not over.is_set():
                done = world.submit(company, scans=3, algorithm=algorithm)
                core.blobs.put(f"jobs/{done.job_ids[0]}/attempts/1/log", b"x")
                written += 1

        writer = threading.Thread(target=work)
        writer.start()
        try:
            while written < 5:
                over.wait(0.01)
            backup(core.settings, tmp_path / "copy", quiet)
            at_end = written
        finally:
            over.set()
            writer.join()
    assert at_end >= 5
    restore(Settings(home=tmp_path / "two", blobs={"min_free": 0}), tmp_path / "copy", quiet)
    with core_in(tmp_path / "two") as core, core.db.read() as conn:
        tasks = conn.execute(sa.select(sa.func.count()).select_from(t.tasks)).scalar_one()
        jobs = conn.execute(sa.select(sa.func.count()).select_from(t.jobs)).scalar_one()
        assert tasks >= 5
        assert jobs == 3 * tasks, "a task came with all its jobs or not at all"


def test_a_delivery_that_was_waiting_is_asked_for_before_it_is_sent(tmp_path: Path) -> None:
    with core_in(tmp_path / "one", techcyte={"host": "ci.techcyte.com"}) as core:
        world = world_of(core)
        job = world.running(world.company())
        with core.db.write() as conn:
            common = {"company_id": job.company_id, "task_id": job.task_id, "kind": "result", "version": 0}
            for number, state in enumerate(("pending", "sending", "unknown", "delivered", "parked")):
                conn.execute(sa.insert(t.deliveries).values(**common, subject=str(number), state=state))
        backup(core.settings, tmp_path / "copy", quiet)
    told: list[str] = []
    restore(Settings(home=tmp_path / "two", blobs={"min_free": 0}), tmp_path / "copy", told.append)
    assert any("2 deliveries" in line for line in told)
    with core_in(tmp_path / "two") as core, core.db.read() as conn:
        rows = conn.execute(sa.select(t.deliveries).order_by(t.deliveries.c.id)).all()
    assert [r.state for r in rows] == ["unknown", "unknown", "unknown", "delivered", "parked"]
    assert rows[0].sent_at is not None
    assert rows[0].sent_at <= datetime.now(UTC)


@pytest.mark.parametrize("what", ["database", "keys/vault", "blob", "manifest.json", "format"])
def test_a_damaged_backup_is_refused_before_anything_is_written(tmp_path: Path, what: str) -> None:
    copy = tmp_path / "copy"
    with core_in(tmp_path / "one") as core:
        fill(core)
        backup(core.settings, copy, quiet)
    if what == "manifest.json":
        (copy / what).unlink()
    elif what == "format":
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    else:
        file = next((copy / "blobs").glob("*/*")) if what == "blob" else copy / what
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    home = tmp_path / "two"
    with pytest.raises(BackupError):
        restore(Settings(home=home), copy, quiet)
    assert not home.exists()


def test_a_backup_never_goes_into_a_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "precious").write_text("x")
    with core_in(tmp_path / "one") as core, pytest.raises(ConflictError):
        backup(core.settings, tmp_path / "copy", quiet)
    with pytest.raises(ConflictError):
        backup(Settings(home=tmp_path / "nothing"), tmp_path / "other", quiet)


def test_keys_that_are_kept_elsewhere_are_asked_for_and_not_copied(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name, value in new_secrets().items():
        (secrets / name).write_text(value)
    elsewhere = {"secrets": {"directory": secrets}, "blobs": {"min_free": 0}}
    home = tmp_path / "one"
    home.mkdir()
    core = build_core(Settings(home=home, **elsewhere), ENDPOINTS)
    try:
        job = fill(core)
        env = open_env(core.db, core.jobs.jobs.row(job).env)
        told: list[str] = []
        backup(core.settings, tmp_path / "copy", told.append)
    finally:
        core.db.close()
    assert any("kept elsewhere" in line for line in told)
    vault = (secrets / "vault").read_bytes()
    assert not [f for f in (tmp_path / "copy").rglob("*") if f.is_file() and vault in f.read_bytes()]
    with pytest.raises(BackupError, match="kept elsewhere"):
        restore(Settings(home=tmp_path / "two"), tmp_path / "copy", quiet)
    restore(Settings(home=tmp_path / "two", **elsewhere), tmp_path / "copy", quiet)
    core = build_core(Settings(home=tmp_path / "two", **elsewhere), ENDPOINTS)
    try:
        assert open_env(core.db, core.jobs.jobs.row(job).env) == env
    finally:
        core.db.close()


def test_a_backup_of_one_kind_of_database_is_not_restored_into_another(tmp_path: Path) -> None:
    with core_in(tmp_path / "one") as core:
        backup(core.settings, tmp_path / "copy", quiet, blobs=False, images=False)
    settings = Settings(home=tmp_path / "two", database_url="postgresql://nobody@127.0.0.1:1/mhs")
    with pytest.raises(BackupError, match="of sqlite"):
        restore(settings, tmp_path / "copy", quiet)
