"""One small Ray for all tests of the pool, and slides to read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from mhs_ray.slides.demo import make_demo_slide


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=3, include_dashboard=False, logging_level="WARNING", object_store_memory=256 << 20)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slides")
    return [make_demo_slide(folder / f"{n}.svs", 2048, 1536, mpp=0.25, seed=n).path for n in (1, 2)]
