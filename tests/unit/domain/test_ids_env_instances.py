"""Techcyte's ids, environment variables, instance types, image references."""

from __future__ import annotations

import base64
import contextlib
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhs_ray.domain import errors as e
from mhs_ray.domain.env import PLATFORM, RESERVED, EnvVar, check_env, merge_env
from mhs_ray.domain.ids import encode_id, parse_id
from mhs_ray.domain.instances import INSTANCE_TYPES, larger_memory_than
from mhs_ray.domain.models import ImageRef


@pytest.mark.parametrize("text", ["185714", "dGFzazoxODU3MTQ=", "dGFzazoxODU3MTQ", " 185714 ", "000185714"])
def test_all_forms_of_a_task_id_name_the_same_task(text: str) -> None:
    assert parse_id(text, "task") == 185714


@given(st.integers(1, (1 << 53) - 1), st.sampled_from(["task", "humanCase", "scan"]))
def test_what_is_encoded_is_read_back(number: int, kind: str) -> None:
    assert parse_id(encode_id(kind, number), kind) == parse_id(str(number), kind) == number


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "0", "-1", "1.5", "1e5", "²", "١٢", "task:185714", "aHVtYW5DYXNlOjI0MjEzNjY=", "!!!", "True", "None",
        str(1 << 53), "9" * 30, "9" * 5000, base64.b64encode(b"task:").decode(), base64.b64encode(b"task:-5").decode(),
        base64.b64encode("task:²".encode()).decode(), base64.b64encode(b"\xff\xfe").decode(),
        "\x00", "dGFzazoxODU3MTQ=\n=",
    ],
)  # fmt: skip
def test_what_is_no_task_id_is_refused_at_its_path(text: str) -> None:
    with pytest.raises(e.InvalidInputError) as caught:
        parse_id(text, "task", "$.task_id")
    assert [f.path for f in caught.value.faults] == ["$.task_id"]
    assert len(caught.value.faults[0].message) < 400


@given(st.text(max_size=40))
def test_no_text_makes_the_reader_of_ids_stumble(text: str) -> None:
    with contextlib.suppress(e.InvalidInputError):
        assert parse_id(text, "task") > 0


@pytest.mark.parametrize("name", sorted(RESERVED | PLATFORM))
def test_names_of_the_contract_and_of_the_sandbox_cannot_be_set(name: str) -> None:
    (fault,) = check_env([EnvVar("OK", "1"), EnvVar(name, "x")])
    assert fault.path == "$.env[1].name"
    assert name in fault.message


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "A=B", "É", "A\n", "A" * 256, "A\x00"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    (fault,) = check_env([EnvVar(name, "x")])
    assert fault.path == "$.env[0].name"


def test_every_fault_of_the_variables_is_told_at_once() -> None:
    env = [EnvVar("A", "1"), EnvVar("A", "2"), EnvVar("B", "a\x00b"), EnvVar("C", "x" * 40_000)]
    assert [f.path for f in check_env(env)] == ["$.env[1].name", "$.env[2].value", "$.env[3].value"]


def test_too_many_or_too_large_variables_are_refused_in_all() -> None:
    assert [f.path for f in check_env([EnvVar(f"V{i}", "") for i in range(201)])] == ["$.env"]
    assert [f.path for f in check_env([EnvVar(f"V{i}", "x" * 30_000) for i in range(4)])] == ["$.env"]


def test_good_variables_have_no_faults_whatever_their_values_hold() -> None:
    assert check_env([EnvVar("_a1", "line\nbreak"), EnvVar("B", ""), EnvVar("C", "ä=ß'\"$x")]) == []


def test_the_contracts_variables_win() -> None:
    assert merge_env({"A": "1", "HOST": "evil"}, {"HOST": "h"}) == {"A": "1", "HOST": "h"}


def test_the_instance_types_are_techcytes() -> None:
    assert len(INSTANCE_TYPES) == 8
    kind = INSTANCE_TYPES["g6e.2xlarge"]
    assert (kind.vcpu, kind.memory_bytes, kind.gpu, kind.vram_gb) == (8, 64 << 30, "L40S", 48)


def test_more_memory_is_found_unless_there_is_none() -> None:
    larger = larger_memory_than("g4dn.xlarge")
    assert larger is not None
    assert larger.memory_gb == 32
    assert larger_memory_than("g6e.2xlarge") is None


def test_an_image_is_named_by_digest_only() -> None:
    assert str(ImageRef("r:5000", "a/b", "sha256:" + "0" * 64)) == f"r:5000/a/b@sha256:{'0' * 64}"
    for digest in ("latest", "sha256:" + "0" * 63, "sha256:" + "G" * 64, ""):
        with pytest.raises(e.InvalidInputError):
            ImageRef("r", "a", digest)


@pytest.mark.parametrize(
    "error",
    [
        e.InvalidInputError([e.Fault("$.a", "wrong"), e.Fault("$.b", "too")]), e.NotFoundError("job", 7),
        e.ConflictError("not now"), e.UnauthenticatedError("who"), e.ForbiddenError("no"),
        e.OverloadedError("later", 5),
        e.TransitionError("queued", "exited"), e.EngineError("podman", "pull", "no"),
        e.ExecError("docker", "run", "no"),
        e.RegistryError("down"),
        e.AdmissionError("arm64", "build for amd64"),
        e.BlobError("x"), e.BlobNotFoundError("k"),
        e.BlobsFullError("full", 9), e.SlideError("not-a-slide", "no"), e.SlideFetchError("stalled", "slow", True),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_every_error_survives_the_way_through_ray(error: e.MhsError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error) != ""
    assert vars(back) == vars(error)
