"""The peer of ``mhs bench cohort``: the same work on the same slides by ``ray.data`` and its ``map_batches``."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray

from mhs_ray.actors.names import NAMESPACE
from mhs_ray.domain.settings import load_settings
from mhs_ray.platform.endpoints import Endpoints


class Model:
    """Loaded once per actor."""

    def __init__(self, load_s: float) -> None:
        time.sleep(load_s)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Read, hash and average each slide."""
        found = [Path(str(path)).read_bytes() for path in batch["slide"]]
        return {
            "slide": batch["slide"],
            "sha256": np.array([hashlib.sha256(data).hexdigest() for data in found]),
            "mean": np.array([np.frombuffer(data, np.uint8).mean() for data in found]),
        }


def main(load_s: float, slides: list[str]) -> int:
    """Run and print {"seconds", "slides"}."""
    ray.init(Endpoints.load(load_settings().home).ray_address, namespace=NAMESPACE, log_to_driver=False)
    from ray import data

    began = time.monotonic()
    made = data.from_items([{"slide": slide} for slide in slides]).map_batches(
        Model, fn_constructor_args=(load_s,), batch_size=1, num_gpus=1, num_cpus=0, concurrency=1
    )
    rows = made.take_all()
    took = time.monotonic() - began
    sys.stdout.write(json.dumps({"seconds": round(took, 2), "slides": len(rows)}) + "\n")
    return 0 if len(rows) == len(slides) else 1


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
