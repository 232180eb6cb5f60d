"""A demo slide made once, and the sample slides where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from mhs_ray.slides.demo import DemoSlide, make_demo_slide

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"


def sample(name: str) -> Path:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"the sample slide {name} is not in ../shared/data")
    return path


@pytest.fixture(scope="session")
def svs() -> Path:
    return sample("CMU-1-Small-Region.svs")


@pytest.fixture(scope="session")
def dicom() -> Path:
    return sample("sm_image.dcm")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoSlide:
    return make_demo_slide(tmp_path_factory.mktemp("demo") / "slide", 2500, 1900, seed=7)
