"""Run a model over the tiles of many slides: ``ray job submit -- python -m jobs.infer_tiles --help``.

    ray job submit --working-dir . -- python -m jobs.infer_tiles \
        --slides slides.csv --model my_model:predict --size 224 --mpp 0.5 --tissue --out /data/out

Out come one Parquet file (slide, level, x, y, mpp, and the model's outputs) and one GeoJSON file per slide. Run it
again and finished slides are left out; slides that cannot be read are told at the end and in ``errors.json``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import ray

from mhs_ray.actors.infer import InferOptions, infer, read_manifest
from mhs_ray.domain.errors import MhsError
from mhs_ray.slides.plan import TileRequest
from mhs_ray.slides.remote import RemoteOptions
from mhs_ray.slides.url_guard import UrlPolicy


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(prog="infer_tiles", description=__doc__.split("\n", 1)[0] if __doc__ else None)
    made.add_argument("--slides", type=Path, required=True, help="one path or URL a line, or CSV with slide,name")
    made.add_argument("--model", required=True, help="module:callable, or an .onnx or TorchScript .pt file")
    made.add_argument("--out", type=Path, required=True, help="folder that all nodes see, or of this node")
    made.add_argument("--size", type=int, default=256, help="side of a tile in pixels")
    made.add_argument("--stride", type=int, help="from one tile to the next; the size when left out")
    made.add_argument("--mpp", type=float, help="microns per pixel of the tiles")
    made.add_argument("--level", type=int, help="level of the slide, in place of --mpp")
    made.add_argument("--tissue", action="store_true", help="leave out the glass")
    made.add_argument("--readers", type=int, help="reader actors, one core each")
    made.add_argument("--models", type=int, default=1, help="model actors")
    made.add_argument("--gpus", type=float, help="GPUs of each model actor; 1 where the cluster has any")
    made.add_argument("--batch", type=int, default=64, help="tiles given to the model at once")
    made.add_argument("--memory-mib", type=int, default=512, help="decoded tiles under way, at most")
    made.add_argument("--min-score", type=float, default=0.0, help="tiles below are left out of the GeoJSON")
    made.add_argument("--allow-private", action="store_true", help="slides may come from addresses of this network")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run; return 0 when every slide is done, 1 when some could not be read, 2 for a request that cannot be met."""
    asked = parser().parse_args(arguments)
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)
    here: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = asked.gpus if asked.gpus is not None else float(here.get("GPU", 0) >= asked.models)
    try:
        report = infer(
            read_manifest(asked.slides),
            asked.model,
            TileRequest(asked.size, asked.stride, asked.mpp, asked.level),
            asked.out,
            InferOptions(
                models=asked.models,
                gpus=gpus,
                readers=asked.readers,
                memory_bytes=asked.memory_mib << 20,
                batch=asked.batch,
                min_score=asked.min_score,
                paths=(str(Path.cwd()),),
                remote=RemoteOptions(policy=UrlPolicy(allow_private=asked.allow_private)),
            ),
            tissue=asked.tissue,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except (MhsError, OSError) as error:
        print(f"infer_tiles: {error}", file=sys.stderr)
        return 2
    print(
        json.dumps(
            {
                "done": report.done,
                "skipped": report.skipped,
                "errors": report.errors,
                "tiles": report.tiles,
                "seconds": round(report.seconds, 1),
            }
        )
    )
    return 1 if report.errors else 0


if __name__ == "__main__":
    raise SystemExit(main())
