"""A model over many slides: reader actors make tiles, model actors score them, and neither waits for the next slide.

Per slide one Parquet file and one GeoJSON file, each appearing by one rename once the slide is whole: that is the
checkpoint, and what a second run leaves out. A slide that cannot be read is told in ``errors.json``; the rest goes on.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from mhs_ray.actors.tile_readers import TileSlide
from mhs_ray.actors.tiles import PoolBatch, PoolOptions, TilePool
from mhs_ray.domain.errors import InvalidInputError, MhsError
from mhs_ray.slides.plan import TilePlan, TileRequest, coordinates, sides
from mhs_ray.slides.remote import RemoteOptions
from mhs_ray.slides.ring import Ring
from mhs_ray.slides.tile_reader import Tissue

log = logging.getLogger(__name__)

Outputs = dict[str, NDArray[Any]]
"""Per output its name and one value or vector per tile, shape (n,) or (n, d)."""

Progress = Callable[[str], None]
_TELL_EVERY_S: Final = 2.0
_KEY: Final = b"mhs.request"


@dataclass(frozen=True, slots=True)
class InferOptions:
    """models: model actors. gpus: of each; 0 for the CPU. readers, memory_bytes, batch: see PoolOptions.

    min_score: tiles below are left out of the GeoJSON, not of the Parquet file. paths: where a callable's module is.
    """

    models: int = 1
    gpus: float = 0
    readers: int | None = None
    memory_bytes: int = 512 << 20
    batch: int = 64
    min_score: float = 0.0
    remote: RemoteOptions | None = None
    paths: tuple[str, ...] = ()


@dataclass(slots=True)
class InferReport:
    """What came of it. skipped: slides that an earlier run had finished. errors: by slide."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    tiles: int = 0
    seconds: float = 0.0


class Model:
    """The actor that holds one model: ``module:callable`` (a class is made once), or an .onnx or .pt file.

    A callable is given uint8 pixels (n, height, width, 3); files are given float32 (n, 3, height, width) in 0 to 1.
    It returns an array (n,) or (n, d), or a dict of them.
    """

    def __init__(self) -> None:
        self._predict: Callable[[NDArray[np.uint8]], Any] = planes
        self._rings: dict[str, Ring] = {}

    def load(self, spec: str, paths: Sequence[str]) -> None:
        """Make the model ready. paths: of the caller's own modules."""
        sys.path[:0] = [p for p in paths if p not in sys.path]
        self._predict = load_model(spec)

    def predict_at(self, place: tuple[str, int, int, int], shape: tuple[int, int, int]) -> Outputs:
        """Score the tiles in a ring's slot, where they are."""
        where, slots, slot_bytes, slot = place
        if where not in self._rings:
            self._rings[where] = Ring.open(where, slots, slot_bytes)
        return self.predict(self._rings[where].tiles(slot, *shape))

    def predict(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Score tiles."""
        found = self._predict(pixels)
        named = found if isinstance(found, dict) else {"score": found}
        made: Outputs = {}
        for name, values in named.items():
            array = np.asarray(values)
            if array.ndim == 2 and array.shape[1] == 1:
                array = array[:, 0]
            if array.ndim not in (1, 2) or len(array) != len(pixels):
                raise InvalidInputError.at(
                    "model", f"its output {name!r} has the shape {array.shape} for {len(pixels)} tiles"
                )
            made[str(name)] = array
        return made


ModelActor: Any = ray.remote(Model)


def load_model(spec: str) -> Callable[[NDArray[np.uint8]], Any]:
    """Return the model as a function of pixels; see `Model`. Raises InvalidInputError."""
    if spec.endswith(".onnx"):
        return _onnx(Path(spec))
    if spec.endswith((".pt", ".pth", ".ts")):
        return _torchscript(Path(spec))
    module, colon, name = spec.partition(":")
    try:
        found = getattr(importlib.import_module(module), name) if colon else None
    except (ImportError, AttributeError) as error:
        raise InvalidInputError.at("model", f"{spec} cannot be imported: {error}") from None
    if not callable(found):
        raise InvalidInputError.at("model", f"{spec} is no module:callable, .onnx or .pt file")
    made: Callable[[NDArray[np.uint8]], Any] = found() if isinstance(found, type) else found
    return made


def planes(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return pixels as float32 (n, 3, height, width) in 0 to 1."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def _onnx(path: Path) -> Callable[[NDArray[np.uint8]], Any]:
    try:
        runtime: Any = importlib.import_module("onnxruntime")
    except ImportError:
        raise InvalidInputError.at("model", "ONNX files need onnxruntime: pip install onnxruntime(-gpu)") from None
    wanted = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in runtime.get_available_providers()]
    session = runtime.InferenceSession(str(path), providers=wanted)
    given, names = session.get_inputs()[0], [o.name for o in session.get_outputs()]

    def predict(pixels: NDArray[np.uint8]) -> Any:
        data = pixels if given.type == "tensor(uint8)" else planes(pixels)
        return dict(zip(names, session.run(None, {given.name: data}), strict=True))

    return predict


def _torchscript(path: Path) -> Callable[[NDArray[np.uint8]], Any]:
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        raise InvalidInputError.at("model", "TorchScript files need PyTorch: pip install torch") from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = torch.jit.load(str(path), map_location=device).eval()

    def predict(pixels: NDArray[np.uint8]) -> Any:
        with torch.inference_mode():
            batch = torch.from_numpy(pixels.copy()).to(device).permute(0, 3, 1, 2).float().div_(255)
            found = model(batch)
        if isinstance(found, dict):
            return {k: v.float().cpu().numpy() for k, v in found.items()}
        if isinstance(found, tuple | list):
            return {f"output{i}": v.float().cpu().numpy() for i, v in enumerate(found)}
        return found.float().cpu().numpy()

    return predict


def read_manifest(path: Path) -> list[TileSlide]:
    """Return the slides of a manifest: a text file with one path or URL a line, or CSV with ``slide`` and ``name``."""
    text = path.read_text()
    first = text.split("\n", 1)[0]
    if path.suffix == ".csv" or "slide" in [c.strip() for c in first.split(",")]:
        rows = list(csv.DictReader(text.splitlines()))
        slides = [TileSlide(r["slide"].strip(), (r.get("name") or "").strip() or None) for r in rows if r.get("slide")]
    else:
        slides = [TileSlide(line.strip()) for line in text.splitlines() if line.strip() and line[0] != "#"]
    if not slides:
        raise InvalidInputError.at("slides", f"{path.name} names no slide: one path or URL a line, or CSV (slide,name)")
    return slides


def infer(
    slides: Sequence[TileSlide],
    model: str,
    request: TileRequest,
    out: Path,
    options: InferOptions | None = None,
    *,
    tissue: bool | Tissue = False,
    say: Progress = lambda line: None,
) -> InferReport:
    """Run `model` over the tiles of `slides` into `out`; see the module. Raises only for what no slide can mend."""
    options = options or InferOptions()
    sides(request)  # what is wrong with every slide is said once, before anything starts
    out.mkdir(parents=True, exist_ok=True)
    began, report = time.monotonic(), InferReport()
    key = json.dumps([model, asdict(request), bool(tissue)], sort_keys=True, default=str)
    names = _names(slides)
    todo = []
    for slide, name in zip(slides, names, strict=True):
        if _is_done(out / f"{name}.parquet", key):
            report.skipped.append(name)
        else:
            todo.append(TileSlide(slide.where, name))
    if not todo:
        return report
    models = [ModelActor.options(num_cpus=1, num_gpus=options.gpus).remote() for _ in range(options.models)]

    def bad(name: str, error: MhsError) -> None:
        report.errors[name] = str(error)
        say(f"{name} cannot be read: {error}")

    pool_options = PoolOptions(
        options.readers, options.memory_bytes, options.batch, remote=options.remote, bad_slide=bad
    )
    try:
        try:
            ray.get([m.load.remote(model, options.paths) for m in models])
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, MhsError) else error) from None
        with TilePool(todo, request, pool_options, tissue=tissue) as pool:
            _Run(todo, pool, models, out, key, options, report, say).run()
    finally:
        for actor in models:
            ray.kill(actor)
    (out / "errors.json").write_text(json.dumps(report.errors, indent=1))
    report.seconds = time.monotonic() - began
    return report


class _Run:
    def __init__(
        self,
        slides: Sequence[TileSlide],
        pool: TilePool,
        models: list[Any],
        out: Path,
        key: str,
        options: InferOptions,
        report: InferReport,
        say: Progress,
    ) -> None:
        self._slides, self._pool, self._models = slides, pool, models
        self._out, self._key, self._options, self._report, self._say = out, key, options, report, say
        self._running: dict[Any, tuple[int, PoolBatch]] = {}
        self._load = [0] * len(models)
        self._parts: dict[int, list[tuple[NDArray[np.int64], Outputs]]] = {}
        self._counts: dict[int, int] = {}
        self._told, self._began = 0.0, time.monotonic()

    def run(self) -> None:
        for batch in self._pool.batches():
            # One at work and one at hand for each model, and what the pool's memory allows.
            while min(self._load) >= 2 or len(self._running) >= self._pool.may_keep:
                self._collect()
            chosen = self._load.index(min(self._load))
            actor, size = self._models[chosen], batch.plan.size
            batch.keep()
            if batch.place is not None:
                ref = actor.predict_at.remote(batch.place, (len(batch), size.height, size.width))
            else:
                ref = actor.predict.remote(batch.pixels)
            self._running[ref] = (chosen, batch)
            self._load[chosen] += 1
            self._collect(timeout=0)
        while self._running:
            self._collect()
        for slide, plan in self._pool.plans.items():
            if not len(plan):
                self._write(slide, plan, [])

    def _collect(self, timeout: float | None = None) -> None:
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout)
        for ref in ready:
            chosen, batch = self._running.pop(ref)
            self._load[chosen] -= 1
            try:
                outputs: Outputs = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, MhsError) else error) from None
            finally:
                batch.release()
            self._parts.setdefault(batch.slide, []).append((batch.indices, outputs))
            self._counts[batch.slide] = self._counts.get(batch.slide, 0) + len(batch)
            self._report.tiles += len(batch)
            if self._counts[batch.slide] == len(batch.plan):
                self._write(batch.slide, batch.plan, self._parts.pop(batch.slide))
            self._tell()

    def _write(self, slide: int, plan: TilePlan, parts: list[tuple[NDArray[np.int64], Outputs]]) -> None:
        name = self._slides[slide].name or str(slide)
        order = np.concatenate([i for i, _ in parts]) if parts else np.empty(0, np.int64)
        rows = coordinates(plan, order).combine_chunks()
        outputs = {k: np.concatenate([o[k] for _, o in parts]) for k in parts[0][1]} if parts else {}
        for column, values in outputs.items():
            made = pa.array(values) if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(
                pa.array(values.reshape(-1)), values.shape[1]
            )  # fmt: skip
            rows = rows.append_column(column, made)
        rows = rows.sort_by([("y", "ascending"), ("x", "ascending")])
        rows = rows.replace_schema_metadata({_KEY: self._key.encode(), b"mhs.plan": json.dumps(plan.facts()).encode()})
        _at_once(self._out / f"{name}.geojson", json.dumps(_features(plan, rows, self._options.min_score)).encode())
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd")
        _at_once(self._out / f"{name}.parquet", sink.getvalue().to_pybytes())  # last: it says that the slide is done
        self._report.done.append(name)

    def _tell(self) -> None:
        now = time.monotonic()
        if now < self._told + _TELL_EVERY_S:
            return
        self._told = now
        done, planned = self._report.tiles, self._pool.planned
        share = done / max(planned, 1)
        bar = "#" * round(24 * share)
        rate = done / max(now - self._began, 1e-9)
        slides = f"{len(self._report.done)} of {len(self._slides)} slides"
        self._say(f"[{bar:<24}] {slides}, {done} of {planned} tiles so far, {rate:.0f} a second")


def _features(plan: TilePlan, rows: pa.Table, min_score: float) -> dict[str, Any]:
    """Tiles as squares in level-0 pixels, with every output of one value as a property."""
    width, height = (round(v) for v in plan.extent)
    scalars = {n: rows[n].to_pylist() for n in rows.schema.names[5:] if not pa.types.is_fixed_size_list(rows[n].type)}
    score = next(iter(scalars.values()), None)
    features = []
    for index, (x, y) in enumerate(zip(rows["x"].to_pylist(), rows["y"].to_pylist(), strict=True)):
        if score is None or score[index] < min_score:
            continue
        ring = [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"annotation_type": "tile", **{n: v[index] for n, v in scalars.items()}},
            }
        )
    return {"type": "FeatureCollection", "features": features}


def _names(slides: Sequence[TileSlide]) -> list[str]:
    """File names, one per slide: readable, and different for different slides, whichever run they are in."""
    names = []
    for slide in slides:
        bare = slide.where.split("?", 1)[0]
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in slide.name or Path(bare).stem)[:80]
        if any(o is not slide and (o.name or Path(o.where.split("?", 1)[0]).stem) == name for o in slides):
            name += "-" + hashlib.sha256(bare.encode()).hexdigest()[:8]
        names.append(name.lstrip(".") or "slide")
    return names


def _is_done(path: Path, key: str) -> bool:
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return False
    return bool(metadata.get(_KEY) == key.encode())


def _at_once(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    part.replace(path)
