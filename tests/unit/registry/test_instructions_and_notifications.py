from __future__ import annotations

import shlex
from datetime import UTC, datetime
from typing import Any

import pytest

from mhs_ray.ports import PushAccess
from mhs_ray.registry.instructions import push_instructions, push_variants
from mhs_ray.registry.notifications import authentic, pushed_images

ACCESS = PushAccess(
    "127.0.0.1:5000", "quarantine/7", "image-7", "AWS", "a.b-c_d", datetime(2030, 1, 1, tzinfo=UTC), tls=False
)


def test_the_four_commands_are_those_of_the_contract() -> None:
    assert push_instructions(ACCESS) == [
        "docker build -t my-docker-image:latest .",
        "docker tag my-docker-image:latest 127.0.0.1:5000/quarantine/7:image-7",
        "docker login --username AWS --password a.b-c_d 127.0.0.1:5000/quarantine/7",
        "docker push 127.0.0.1:5000/quarantine/7:image-7",
    ]


def test_variants_keep_the_password_off_the_clients_command_line() -> None:
    for variant in push_variants(ACCESS):
        for command in variant.commands:
            client = command.rpartition(" | ")[2]
            assert ACCESS.password not in client
            assert shlex.split(command)


def test_flags_for_plain_http_are_given_only_where_it_is_plain_http() -> None:
    plain = [c for v in push_variants(ACCESS) for c in v.commands]
    assert sum("tls-verify=false" in command for command in plain) == 4
    tls = PushAccess("r.example", "quarantine/7", "image-7", "AWS", "p", datetime(2030, 1, 1, tzinfo=UTC))
    assert not any("tls-verify" in c for v in push_variants(tls) for c in v.commands)


def test_a_credential_does_not_show_in_a_repr() -> None:
    assert ACCESS.password not in repr(ACCESS)


def event(action: str, repository: Any) -> dict[str, Any]:
    return {"action": action, "target": {"repository": repository}}


@pytest.mark.parametrize(
    ("envelope", "expected"),
    [
        (
            {"events": [event("push", "quarantine/7"), event("push", "quarantine/7"), event("push", "quarantine/9")]},
            {7, 9},
        ),
        (
            {"events": [event("pull", "quarantine/7"), event("push", "trusted/7"), event("push", "quarantine/7/x")]},
            set(),
        ),
        ({"events": [event("push", 7), event("push", "quarantine/007"), {"target": 1}, None, {}]}, set()),
        ({"events": "x"}, set()),
        ([], set()),
        (None, set()),
    ],
)
def test_notifications_name_pushed_definitions_and_odd_ones_nothing(envelope: Any, expected: set[int]) -> None:
    assert pushed_images(envelope) == expected


def test_only_the_registrys_own_secret_is_authentic() -> None:
    assert authentic("Bearer s3cret", "s3cret")
    for header in (None, "", "Bearer", "Bearer other", "s3cret", "Bearer s3cret\u00e9"):
        assert not authentic(header, "s3cret")
