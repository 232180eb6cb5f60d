from __future__ import annotations

import json
import pickle

import pytest

from mhs_ray.domain.errors import SlideError, SlideFetchError
from mhs_ray.domain.failures import FailureCode
from mhs_ray.slides.failure_codes import failure_code
from mhs_ray.slides.geometry import Mpp, PixelSize
from mhs_ray.slides.reader import LevelFacts, LevelNotFoundError, SlideFacts


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.5), (0.5, -1.0), (float("nan"), 0.5), (0.5, float("inf"))])
def test_microns_per_pixel_that_cannot_be_are_refused(x: float, y: float) -> None:
    with pytest.raises(SlideError, match="must be positive"):
        Mpp(x, y)


def test_a_size_of_zero_is_refused() -> None:
    with pytest.raises(SlideError, match="at least 1 x 1"):
        PixelSize(0, 256)


def test_facts_survive_json() -> None:
    facts = SlideFacts(
        format="tiff", vendor="aperio", width=100, height=50,
        levels=(LevelFacts(100, 50, 1.0), LevelFacts(25, 12, 4.08)),
        mpp=Mpp(0.5, 0.25), objective_power=20.0, tile_size=PixelSize(240, 240), background=(1, 2, 3), has_icc=True,
        associated=("label",), notes=("odd",),
    )  # fmt: skip
    assert SlideFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    bare = SlideFacts(format="tiff", vendor="x", width=1, height=1, levels=(LevelFacts(1, 1, 1.0),))
    assert SlideFacts.from_json(json.loads(json.dumps(bare.to_json()))) == bare


def test_a_missing_level_survives_pickling_with_its_words() -> None:
    error = LevelNotFoundError("a.svs", 9, 3)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.reason) == ("a.svs has levels 0 to 2, but no level 9", "no-such-level")


def test_what_may_pass_is_the_platforms_failure_and_the_rest_is_the_slides() -> None:
    assert failure_code(SlideError("truncated", "x")) is FailureCode.SLIDE_TRUNCATED
    assert failure_code(SlideError("never heard of", "x")) is FailureCode.SLIDE_UNREADABLE
    assert failure_code(SlideFetchError("short-body", "x", True)) is FailureCode.FETCH_FAILED
    assert failure_code(SlideFetchError("expired", "x")) is FailureCode.SLIDE_EXPIRED
