"""Rules of the services that no route shows by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from mhs_ray.domain.errors import AdmissionError, ConflictError, InvalidInputError, RegistryError
from mhs_ray.domain.models import ImageRef, ImageStatus, Principal, Role, ScanStatus
from mhs_ray.ports import Admission
from mhs_ray.services.core import Core
from mhs_ray.services.images import ImageService
from mhs_ray.services.names import clean_name
from tests.api_fixtures import FakeRegistry
from tests.core_fixtures import core_in, world_of
from tests.store_fixtures import DIGEST, World

OTHER = "sha256:" + "cd" * 32


@dataclass
class Refusing(FakeRegistry):
    """A fake registry whose checks fail as a test says."""

    errors: list[Exception] = field(default_factory=list)
    promoted: list[tuple[str, int]] = field(default_factory=list)

    def admit(self, image_id: int, digest: str) -> Admission:
        if self.errors:
            raise self.errors.pop(0)
        return super().admit(image_id, digest)

    def promote(self, image_id: int, digest: str, number: int) -> ImageRef:
        self.promoted.append((digest, number))
        return super().promote(image_id, digest, number)


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Core]:
    with core_in(tmp_path) as core:
        yield core


@pytest.fixture
def world(core: Core) -> World:
    return world_of(core)


def _who(world: World) -> Principal:
    return Principal(world.company(), "Ada", Role.LAB_ADMIN, "mhs-1")


# ------------------------------------------------------------ pushes


def test_a_push_is_taken_in_once_and_numbered(world: World) -> None:
    registry, who = Refusing(), _who(world)
    service = ImageService(world.images, registry, timedelta(hours=12))
    image = service.create(who, "Mitosis")
    service.push_access(who, image.id)
    assert service.reconcile() == 0, "nothing was pushed yet"
    for digest in (DIGEST, DIGEST, OTHER, DIGEST):
        registry.digests[image.id] = digest
        service.reconcile()
    assert registry.promoted == [(DIGEST, 1), (OTHER, 2), (DIGEST, 1)]
    found = world.images.get(who.company_id, image.id)
    assert found.status is ImageStatus.UPLOADED
    assert found.current is not None
    assert (found.current.number, found.current.digest) == (1, DIGEST)


def test_a_refused_image_says_how_to_mend_it_and_a_new_push_is_looked_at(world: World) -> None:
    registry, who = Refusing(errors=[AdmissionError("it is for arm64", "build it for linux/amd64")]), _who(world)
    service = ImageService(world.images, registry, timedelta(hours=12))
    image = service.create(who, "Mitosis")
    registry.digests[image.id] = DIGEST
    service.reconcile([image.id])
    found = world.images.get(who.company_id, image.id)
    assert (found.status, found.failure_message) == (ImageStatus.FAILED, "it is for arm64. build it for linux/amd64")
    registry.digests[image.id] = OTHER
    service.reconcile([image.id])
    assert world.images.get(who.company_id, image.id).status is ImageStatus.UPLOADED


def test_a_check_that_our_registry_cuts_short_is_made_good_in_the_next_round(world: World) -> None:
    registry, who = Refusing(errors=[RegistryError("away")]), _who(world)
    service = ImageService(world.images, registry, timedelta(hours=12))
    image = service.create(who, "Mitosis")
    registry.digests[image.id] = DIGEST
    service.reconcile([image.id])
    assert world.images.get(who.company_id, image.id).status is ImageStatus.CHECKING
    service.reconcile()
    assert world.images.get(who.company_id, image.id).status is ImageStatus.UPLOADED


def test_a_push_to_another_tag_than_the_instructions_is_said_until_the_right_one_comes(world: World) -> None:
    registry, who = Refusing(), _who(world)
    service = ImageService(world.images, registry, timedelta(hours=12))
    image, other = service.create(who, "Mitosis"), service.create(who, "Nuclei")
    service.push_access(who, other.id)
    service.reconcile()
    service.reconcile([image.id])  # the registry tells of a push, and nothing is at the tag
    found = world.images.get(who.company_id, image.id)
    assert found.status is ImageStatus.CREATED
    assert "not to the tag that its Docker Push Instructions name" in found.failure_message
    assert world.images.get(who.company_id, other.id).failure_message == "", "nothing came there"
    registry.digests[image.id] = DIGEST
    service.reconcile([image.id])
    found = world.images.get(who.company_id, image.id)
    assert (found.status, found.failure_message) == (ImageStatus.UPLOADED, "")
    service.reconcile([image.id])
    del registry.digests[image.id]
    service.reconcile([image.id])
    assert world.images.get(who.company_id, image.id).failure_message == "", "what runs is not spoken against"


def test_a_hint_for_an_image_that_is_gone_is_passed_over(world: World) -> None:
    registry = Refusing(digests={99: DIGEST})
    service = ImageService(world.images, registry, timedelta(hours=12))
    assert service.reconcile([99]) == 0
    assert registry.promoted == []


# ------------------------------------------------------------ scans


def test_an_upload_whose_beginning_was_cut_short_can_still_be_completed_or_refused(core: Core, world: World) -> None:
    who = _who(world)
    scan = world.scan(who.company_id, source="blob", location={"filename": "x.svs"}, status=ScanStatus.UPLOADING)
    with pytest.raises(ConflictError, match="nothing was uploaded"):
        core.scans.complete_upload(who, scan.id)


def test_what_was_uploaded_goes_with_its_scan(core: Core, world: World) -> None:
    who = _who(world)
    scan, _, _ = core.scans.begin_upload(who, "C:\\slides\\x.svs", None, None)
    assert scan.name == "x.svs"
    key = core.scans.scans.location(scan.id)["key"]
    core.blobs.put(key, b"x")
    core.scans.delete(who, scan.id)
    assert core.blobs.stat(key) is None


# ------------------------------------------------------------ names


@pytest.mark.parametrize("name", ["Mitosis 40×", "  blanks  ", "ä", "x" * 200, "名前", "a'b\"c<d>"])
def test_good_names_are_taken_without_their_outer_blanks(name: str) -> None:
    assert clean_name(name) == name.strip()


@pytest.mark.parametrize(
    "name", ["", " ", "\n", "x" * 201, "a\nb", "a\x00", "a\u2028b", "\u202eabc", "a\u200bb", "a\tb"]
)
def test_names_that_would_mislead_or_break_a_line_are_refused(name: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        clean_name(name, "$.filename")
    assert caught.value.faults[0].path == "$.filename"


# ------------------------------------------------------------ the composition root


def test_two_processes_of_one_home_share_keys_and_their_one_client(tmp_path: Path) -> None:
    with core_in(tmp_path) as first, core_in(tmp_path) as second:
        assert first.keys == second.keys
        who = first.verifier.verify(second.keys.client_id, second.keys.client_secret)
        assert (who.name, who.role) == ("local", Role.LAB_ADMIN)
