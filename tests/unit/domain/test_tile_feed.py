from __future__ import annotations

import pytest

from mhs_ray.domain.env import EnvVar, check_env
from mhs_ray.domain.tile_feed import TileFeed, parse_tile_feed


def test_what_a_container_asks_for_is_understood() -> None:
    assert parse_tile_feed("size=224 mpp=0.5 tissue") == TileFeed(size=224, mpp=0.5, tissue=True)
    assert parse_tile_feed("stride=100,level=2,batch=8,dct,drop-edges,unordered=yes") == TileFeed(
        stride=100, level=2, batch=8, dct=True, drop_edges=True, unordered=True
    )
    assert parse_tile_feed("") == TileFeed()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("size=0", "within 1 to 8192"), ("size=1000000", "within"), ("mpp=0", "within"), ("mpp=nan", "within"),
        ("mpp=x", "no number"), ("size=2.5", "no number"), ("colour=red", "not understood"), ("size=1 size=2", "twice"),
        ("mpp=1 level=2", "not both"), ("tissue=maybe", "not understood"), ("level=-1", "within"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_it_is_said_when_the_container_is_made(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_tile_feed(text)
    (fault,) = check_env([EnvVar("MHS_TILES", text)])
    assert words in fault.message
    assert fault.path == "$.env[0].value"


def test_where_the_socket_is_cannot_be_set() -> None:
    assert check_env([EnvVar("MHS_TILES", "size=224")]) == []
    assert len(check_env([EnvVar("MHS_TILES_SOCKET", "/x")])) == 1
