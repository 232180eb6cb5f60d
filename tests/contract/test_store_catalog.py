"""Images, containers, algorithms, scans and clients on both databases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from mhs_ray.domain.env import EnvVar
from mhs_ray.domain.errors import ConflictError, InvalidInputError, MhsError, NotFoundError
from mhs_ray.domain.models import ImageRef, ImageStatus, Provider, Role, ScanStatus
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.jobs import JobFilter
from mhs_ray.store.sql.results import Poster
from mhs_ray.store.sql.secrets import Vault
from tests.store_fixtures import DIGEST, VAULT_KEY, World

OTHER_DIGEST = "sha256:" + "cd" * 32


def _fault(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(InvalidInputError) as caught:
        call()
    (fault,) = caught.value.faults
    return fault.path, fault.message


# ------------------------------------------------------------ images


def test_an_image_goes_from_created_over_checking_to_uploaded(world: World) -> None:
    company = world.company()
    image = world.images.create(company, "Mitosis", "ann")
    assert (image.status, image.current, image.created_by) == (ImageStatus.CREATED, None, "ann")
    assert world.images.begin_check(image.id, DIGEST)
    assert world.images.get(company, image.id).status is ImageStatus.CHECKING
    ref = ImageRef("r:5000", f"trusted/{image.id}", DIGEST)
    version = world.images.uploaded(image.id, DIGEST, ref, 9, {"os": "linux"})
    found = world.images.get(company, image.id)
    assert (found.status, found.current) == (ImageStatus.UPLOADED, version)
    assert world.images.reference(version.id) == (ref, {"os": "linux"})
    assert not world.images.begin_check(image.id, DIGEST), "the same manifest is looked at once"


def test_a_check_that_was_cut_short_is_begun_again(world: World) -> None:
    image = world.images.create(world.company(), "x", "ann")
    assert world.images.begin_check(image.id, DIGEST)
    assert image.id in world.images.awaiting_push(datetime.now(UTC))
    assert world.images.begin_check(image.id, DIGEST)


def test_a_bad_push_says_why_and_the_version_before_stays_current(world: World) -> None:
    company = world.company()
    image = world.image(company)
    world.images.begin_check(image.id, OTHER_DIGEST)
    world.images.rejected(image.id, OTHER_DIGEST, "arm64")
    found = world.images.get(company, image.id)
    assert (found.status, found.failure_message) == (ImageStatus.FAILED, "arm64")
    assert found.current is not None
    assert found.current.digest == DIGEST


def test_a_newer_push_keeps_its_standing_when_the_older_check_ends(world: World) -> None:
    company = world.company()
    image = world.images.create(company, "x", "ann")
    world.images.begin_check(image.id, DIGEST)
    world.images.begin_check(image.id, OTHER_DIGEST)
    world.images.rejected(image.id, DIGEST, "stale")
    assert world.images.get(company, image.id).status is ImageStatus.CHECKING
    world.images.rejected(image.id, OTHER_DIGEST, "no entrypoint")
    world.images.uploaded(image.id, DIGEST, ImageRef("r", "t", DIGEST), 1, {})
    found = world.images.get(company, image.id)
    assert (found.status, found.failure_message) == (ImageStatus.FAILED, "no entrypoint")


def test_versions_are_numbered_and_the_same_digest_makes_no_second_one(world: World) -> None:
    company = world.company()
    image = world.image(company)
    for digest in (OTHER_DIGEST, DIGEST):
        world.images.begin_check(image.id, digest)
        world.images.uploaded(image.id, digest, ImageRef("r", "t", digest), 1, {})
    assert [(v.number, v.digest) for v in world.images.versions(company, image.id)] == [(2, OTHER_DIGEST), (1, DIGEST)]
    current = world.images.get(company, image.id).current
    assert current is not None
    assert current.number == 1


def test_an_images_name_is_taken_only_in_its_company(world: World) -> None:
    company, other = world.company(), world.company()
    first, second = world.images.create(company, "Mitosis", "a"), world.images.create(company, "Other", "a")
    world.images.create(other, "Mitosis", "a")
    assert _fault(lambda: world.images.create(company, "Mitosis", "a"))[0] == "$.name"
    assert _fault(lambda: world.images.rename(company, second.id, "Mitosis"))[0] == "$.name"
    assert world.images.rename(company, first.id, "Mitosis").name == "Mitosis"


def test_issuing_a_push_credential_does_not_make_an_image_look_changed(world: World) -> None:
    company = world.company()
    image = world.images.create(company, "x", "a")
    now = datetime.now(UTC)
    world.images.allow_push(company, image.id, now + timedelta(hours=1))
    assert world.images.awaiting_push(now) == [image.id]
    assert world.images.awaiting_push(now + timedelta(hours=2)) == []
    assert world.images.get(company, image.id).updated_at == image.updated_at


def test_an_image_in_use_or_with_jobs_stays_and_one_that_never_ran_goes(world: World) -> None:
    company = world.company()
    used, ran, idle = (world.image(company) for _ in range(3))
    world.container(company, used, name="CPU model")
    with pytest.raises(ConflictError, match="CPU model"):
        world.images.delete(company, used.id)
    container = world.container(company, ran)
    algorithm = world.algorithm(company, container)
    world.queued(company, algorithm)
    world.algorithms.delete(company, algorithm.id)
    world.containers.delete(company, container.id)
    with pytest.raises(ConflictError, match="has jobs"):
        world.images.delete(company, ran.id)
    container = world.container(company, idle)
    algorithm = world.algorithm(company, container)
    world.algorithms.delete(company, algorithm.id)
    world.containers.delete(company, container.id)
    world.images.delete(company, idle.id)
    with pytest.raises(NotFoundError):
        world.images.get(company, idle.id)
    with pytest.raises(NotFoundError):
        world.images.find(idle.id)


# ------------------------------------------------------------ containers and algorithms


def test_a_container_keeps_its_variables_and_shows_its_image(world: World) -> None:
    company = world.company()
    image = world.image(company)
    env = [EnvVar("A", "ä\n'\"", False), EnvVar("B", "hidden", True)]
    made = world.container(company, image, env=env, retry_exit_codes=[75], max_model_retries=2)
    found = world.containers.get(company, made.id)
    assert found == made
    assert (found.env, found.image_name, found.retry_exit_codes) == (tuple(env), image.name, (75,))
    changed = world.containers.update(company, made.id, {"name": "new"}, [EnvVar("C", "1")])
    assert (changed.name, changed.env) == ("new", (EnvVar("C", "1"),))
    assert world.containers.update(company, made.id, {}, None).env == (EnvVar("C", "1"),)


def test_a_container_needs_an_uploaded_image_of_its_own_company(world: World) -> None:
    company, other = world.company(), world.company()
    bare = world.image(company, uploaded=False)
    values = {"name": "x", "instance_type": "g4dn.xlarge", "time_limit_s": 1}
    for image_id, said in ((bare.id, "status is 'created'"), (99999, "no image"), (world.image(other).id, "no image")):
        path, message = _fault(lambda i=image_id: world.containers.create(company, "a", {**values, "image_id": i}, []))  # type: ignore[misc]
        assert path == "$.image_id"
        assert said in message
    container = world.container(company)
    assert (
        _fault(lambda: world.containers.update(company, container.id, {"image_id": bare.id}, None))[0] == "$.image_id"
    )


def test_a_deleted_container_is_gone_but_only_when_no_algorithm_uses_it(world: World) -> None:
    company = world.company()
    container = world.container(company)
    algorithm = world.algorithm(company, container, "Mitosis")
    with pytest.raises(ConflictError, match="Mitosis"):
        world.containers.delete(company, container.id)
    world.algorithms.delete(company, algorithm.id)
    world.containers.delete(company, container.id)
    for call in (
        lambda: world.containers.get(company, container.id),
        lambda: world.containers.delete(company, container.id),
        lambda: world.algorithms.get(company, algorithm.id),
    ):
        with pytest.raises(NotFoundError):
            call()
    assert world.containers.page(company, cursor=None, limit=10, name=None, image_id=None).items == []


def test_the_name_of_a_deleted_algorithm_is_free_again(world: World) -> None:
    company = world.company()
    container = world.container(company)
    first = world.algorithm(company, container, "Mitosis")
    assert _fault(lambda: world.algorithm(company, container, "Mitosis"))[0] == "$.name"
    world.algorithms.delete(company, first.id)
    second = world.algorithm(company, container, "Mitosis")
    third = world.algorithm(company, container, "Other")
    assert _fault(lambda: world.algorithms.update(company, third.id, {"name": "Mitosis"}))[0] == "$.name"
    assert (
        world.algorithms.update(company, second.id, {"provider": Provider.EXTERNAL, "container_id": None}).container_id
        is None
    )
    assert _fault(lambda: world.algorithms.update(company, third.id, {"container_id": 99999}))[0] == "$.container_id"


# ------------------------------------------------------------ scans


def test_a_scan_without_a_number_takes_the_next_of_ours_and_a_given_number_once(world: World) -> None:
    company, other = world.company(), world.company()
    own = world.scan(company)
    assert own.number == 1_000_000_000 + own.id
    world.scan(company, number=8946136)
    world.scan(other, number=8946136)
    assert _fault(lambda: world.scan(company, number=8946136))[0] == "$.number"


def test_a_scan_with_jobs_is_kept(world: World) -> None:
    company = world.company()
    scan, unused = world.scan(company), world.scan(company)
    world.tasks.submit(world.submission(company, world.algorithm(company), scan))
    with pytest.raises(ConflictError):
        world.scans.delete(company, scan.id)
    world.scans.delete(company, unused.id)
    with pytest.raises(NotFoundError):
        world.scans.get(company, unused.id)


def test_what_is_learnt_of_a_scan_is_kept(world: World) -> None:
    company = world.company()
    scan = world.scan(company, status=ScanStatus.UPLOADING)
    world.scans.update(scan.id, status=ScanStatus.READY, size_bytes=1 << 40, facts={"width": 5}, location={"key": "k"})
    found = world.scans.get(company, scan.id)
    assert (found.status, found.size_bytes, found.facts) == (ScanStatus.READY, 1 << 40, {"width": 5})
    assert world.scans.location(scan.id) == {"key": "k"}


# ------------------------------------------------------------ lists


def test_pages_walk_a_whole_list_newest_first_while_it_grows(world: World) -> None:
    company = world.company()
    ids = [world.scan(company).id for _ in range(7)]
    seen: list[int] = []
    cursor = None
    while True:
        page = world.scans.page(company, cursor=cursor, limit=3, name=None, status=None, number=None)
        seen += [s.id for s in page.items]
        world.scan(company)  # something new comes first, so it does not shift what follows
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == ids[::-1]


def test_a_list_that_fits_its_page_exactly_has_no_next_one(world: World) -> None:
    company = world.company()
    for _ in range(3):
        world.scan(company)
    assert world.scans.page(company, cursor=None, limit=3, name=None, status=None, number=None).next_cursor is None


@pytest.mark.parametrize(
    "cursor", ["x", "äöü", "djE6", "djI6NQ", "djE6LTU", "djE6OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5", "====", "\x00"]
)
def test_a_cursor_that_is_none_is_refused(world: World, cursor: str) -> None:
    company = world.company()
    assert _fault(lambda: world.images.page(company, cursor=cursor, limit=5, name=None, status=None))[0] == "$.cursor"


@pytest.mark.parametrize("limit", [0, -1, 501])
def test_a_page_has_a_sane_size(world: World, limit: int) -> None:
    assert _fault(lambda: world.images.page(1, cursor=None, limit=limit, name=None, status=None))[0] == "$.limit"


def test_names_are_searched_literally_and_without_case(world: World) -> None:
    company = world.company()
    for name in ("Mitosis 100%", "mitosis 100x", "Tumor_a", "TumorXa"):
        world.images.create(company, name, "a")

    def found(text: str) -> set[str]:
        return {i.name for i in world.images.page(company, cursor=None, limit=9, name=text, status=None).items}

    assert found("MITOSIS") == {"Mitosis 100%", "mitosis 100x"}
    assert found("100%") == {"Mitosis 100%"}
    assert found("r_a") == {"Tumor_a"}
    assert world.images.page(company, cursor=None, limit=9, name=None, status="uploaded").items == []


# ------------------------------------------------------------ companies


def test_another_company_sees_and_changes_nothing(world: World) -> None:
    company, other = world.company(), world.company()
    image, container = world.image(company), world.container(company)
    algorithm, scan = world.algorithm(company, container), world.scan(company)
    submitted = world.tasks.submit(world.submission(company, algorithm, scan, number=185714))
    job, number = submitted.job_ids[0], submitted.task.number
    theirs = world.algorithm(other)
    everything: list[Callable[[], Any]] = [
        lambda: world.images.get(other, image.id),
        lambda: world.images.rename(other, image.id, "stolen"),
        lambda: world.images.delete(other, image.id),
        lambda: world.images.allow_push(other, image.id, datetime.now(UTC)),
        lambda: world.images.versions(other, image.id),
        lambda: world.containers.get(other, container.id),
        lambda: world.containers.update(other, container.id, {"name": "stolen"}, None),
        lambda: world.containers.delete(other, container.id),
        lambda: world.containers.create(
            other, "eve", {"name": "x", "image_id": image.id, "instance_type": "g4dn.xlarge", "time_limit_s": 1}, []
        ),
        lambda: world.algorithms.get(other, algorithm.id),
        lambda: world.algorithms.update(other, algorithm.id, {"name": "stolen"}),
        lambda: world.algorithms.delete(other, algorithm.id),
        lambda: world.algorithms.create(other, "eve", "x", Provider.MHS, container.id),
        lambda: world.scans.get(other, scan.id),
        lambda: world.scans.delete(other, scan.id),
        lambda: world.tasks.get(other, number),
        lambda: world.tasks.submit(world.submission(other, algorithm, scan)),
        lambda: world.tasks.submit(world.submission(other, theirs, scan)),
        lambda: world.jobs.get(other, job),
        lambda: world.jobs.events(other, job),
        lambda: world.jobs.rerun(other, job, "eve"),
        lambda: world.results.posting(Poster(other, number)),
        lambda: world.results.store(Poster(other, number, job, 1), None, []),
        lambda: world.results.patch_case(Poster(other, number), {"triage_category": "x"}),
        lambda: world.results.of_task(other, number),
        lambda: world.results.of_case(other, number),
        lambda: world.results.of_job(other, job),
    ]
    before = _dump(world)
    for call in everything:
        with pytest.raises((NotFoundError, InvalidInputError)):
            call()
    assert _dump(world) == before
    assert world.scans.page(other, cursor=None, limit=9, name=None, status=None, number=None).items == []
    assert world.tasks.page(other, cursor=None, limit=9, algorithm_id=None, origin=None).items == []
    assert world.jobs.page(other, JobFilter(), cursor=None, limit=9).items == []
    assert world.jobs.of_task(other, submitted.task.id) == []
    shown = world.images.page(other, cursor=None, limit=9, name=None, status=None).items
    assert {i.company_id for i in shown} == {other}


def _dump(world: World) -> dict[str, list[Any]]:
    with world.db.read() as conn:
        return {
            table.name: [tuple(r) for r in conn.execute(sa.select(table).order_by(*table.primary_key))]
            for table in t.metadata.sorted_tables
        }


def test_no_secret_is_stored_in_the_clear(world: World) -> None:
    company = world.company()
    secrets = {"env-s3cret", "url-s3cret", "jwt-s3cret", "0.5-not-secret-but-sealed"}
    container = world.container(
        company,
        env=[EnvVar("K", "env-s3cret", True), EnvVar("P", "0.5-not-secret-but-sealed")],
    )
    algorithm = world.algorithm(company, container)
    world.tasks.submit(world.submission(company, algorithm, world.scan(company), techcyte_jwt="jwt-s3cret"))
    stored = repr(_dump(world)) + repr(
        [bytes(c) for rows in _dump(world).values() for r in rows for c in r if isinstance(c, bytes | memoryview)]
    )
    assert "K" in stored
    assert not [s for s in secrets if s in stored]


def test_a_lost_vault_key_is_named_and_a_rotated_one_still_opens(world: World) -> None:
    company = world.company()
    container = world.container(company)
    fresh = Vault.new_key()
    world.db.vault = Vault([fresh, VAULT_KEY])
    assert world.containers.get(company, container.id).env[1].value == "env-s3cret"
    world.db.vault = Vault([fresh])
    with pytest.raises(MhsError, match="restore keys/vault"):
        world.containers.get(company, container.id)


def test_a_client_is_found_until_it_is_revoked_and_says_when_its_company_is_switched_off(world: World) -> None:
    company = world.company("lab")
    assert world.company("lab") == company
    world.clients.put("mhs-1", company, "lims", Role.LAB_USER, "hash")
    world.clients.put("mhs-1", company, "lims", Role.VIEWER, "hash2")
    found = world.clients.lookup("mhs-1")
    assert found is not None
    assert (found[0].company_id, found[0].role, found[1]) == (company, Role.VIEWER, "hash2")
    world.clients.used("mhs-1")
    assert world.clients.lookup("mhs-2") is None
    world.company("lab", mhs_enabled=False)
    off = world.clients.lookup("mhs-1")
    assert off is not None
    assert (found[0].enabled, off[0].enabled) == (True, False)
    world.clients.revoke(company, "mhs-1")
    assert world.clients.lookup("mhs-1") is None
