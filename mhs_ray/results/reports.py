"""The seven report types of ``workflow.report`` (techcyte-contract §3), told apart by their ``type``.

A field that the contract marks with ``?`` may be left out or null, every other one is needed. Three tolerances:
either list of ``Basic`` may be left out; a segment's ``result`` may be, as Techcyte's public page marks it so; and
points of a semi-quantitative differential need no score, as that page lists none for them. Unknown keys are kept.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, WithJsonSchema
from pydantic_core import PydanticCustomError

from mhs_ray.results.geojson import check_collection, check_feature
from mhs_ray.results.jsonwalk import Faults


def _raise(faults: Faults) -> None:
    """Hand our faults, with paths relative to the field, through pydantic (see `violations.add_faults`)."""
    if faults.count:
        raise PydanticCustomError("faults", "is not valid GeoJSON", {"faults": faults})


def _feature(value: Any) -> Any:
    faults = Faults()
    check_feature(value, "", faults, annotation_type=False)
    _raise(faults)
    return value


def _polygon_feature(value: Any) -> Any:
    faults = Faults()
    check_feature(value, "", faults, annotation_type=False, polygon=True)
    _raise(faults)
    return value


def _collection(value: Any) -> Any:
    faults = Faults()
    check_collection(value, "", faults, annotation_type=False)
    _raise(faults)
    return value


_FEATURE = {"type": "object", "description": "a GeoJSON Feature, level-0 pixels"}
_COLLECTION = {"type": "object", "description": "a GeoJSON FeatureCollection, level-0 pixels"}
Number: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
Feature: TypeAlias = Annotated[Any, AfterValidator(_feature), WithJsonSchema(_FEATURE)]
PolygonFeature: TypeAlias = Annotated[Any, AfterValidator(_polygon_feature), WithJsonSchema(_FEATURE)]
FeatureCollection: TypeAlias = Annotated[Any, AfterValidator(_collection), WithJsonSchema(_COLLECTION)]


class Wire(BaseModel):
    """No coercion ("4" is no number), unknown keys tolerated."""

    model_config = ConfigDict(strict=True, extra="ignore", populate_by_name=False)


class NamedResult(Wire):
    """A name and its value as text."""

    name: str
    result: str


class Segment(Wire):
    """A named group of features, which may have ``name`` and ``color`` and need no ``annotation_type``."""

    name: str
    result: str | None = None
    feature_collection: FeatureCollection


class Point(Wire):
    """A cell or object at a place, level-0 pixels."""

    x: Number
    y: Number
    score: Number
    type: str


class UnscoredPoint(Wire):
    """A cell or object at a place, level-0 pixels; its score may be left out."""

    x: Number
    y: Number
    score: Number | None = None
    type: str


class Region(Wire):
    """A polygon, its weight and score, and the points in it."""

    region: PolygonFeature
    weight: Number
    score: Number
    points: list[Point]


class Box(Wire):
    """An object's box, level-0 pixels; x and y are its top-left corner."""

    x: Number
    y: Number
    width: Number
    height: Number


class LabelCount(Wire):
    """How many of what."""

    label: str
    count: Number


class Share(Wire):
    """What share of an area, and how much of it, has a label."""

    label: str
    fraction: Number
    area: Number


class Cellularity(Wire):
    """Tumor cellularity of one region."""

    tumor_cellularity: Number
    counts: list[LabelCount]
    region: Feature
    area: Number
    distributions: dict[str, list[Share]] | None = None


class Basic(Wire):
    """Named results and segments."""

    type: Literal["Basic"]
    results: list[NamedResult] = []
    segments: list[Segment] = []


class WholeSlideDifferential(Wire):
    """Scored points over the whole slide."""

    type: Literal["WholeSlideDifferential"]
    points: list[Point]
    scores: dict[str, Number]
    positivity_threshold: Number


class AreaDifferential(Wire):
    """Scored points in weighted regions."""

    type: Literal["AreaDifferential"]
    regions: list[Region]
    scores: dict[str, Number]
    positivity_threshold: Number


class SemiQuantitativeDifferential(Wire):
    """Points and scores without a threshold."""

    type: Literal["SemiQuantitativeDifferential"]
    points: list[UnscoredPoint]
    scores: dict[str, Number]


class RegionCounting(Wire):
    """Boxes counted in regions."""

    type: Literal["RegionCounting"]
    objects: list[Box]
    regions: list[Feature]


class AiMitosisCounting(Wire):
    """Mitoses counted in regions."""

    type: Literal["AiMitosisCounting"]
    objects: list[Box]
    regions: list[Feature]


class TumorCellularity(Wire):
    """Tumor cellularity by threshold, with other segments in groups."""

    type: Literal["TumorCellularity"]
    threshold_map: dict[str, Cellularity]
    other_segments: dict[str, list[Segment]] | None = None


Report: TypeAlias = Annotated[
    Basic
    | WholeSlideDifferential
    | AreaDifferential
    | SemiQuantitativeDifferential
    | RegionCounting
    | AiMitosisCounting
    | TumorCellularity,
    Field(discriminator="type"),
]
REPORT: TypeAdapter[Any] = TypeAdapter(Report)
REPORT_TYPES = (
    "Basic", "WholeSlideDifferential", "AreaDifferential", "SemiQuantitativeDifferential", "RegionCounting",
    "AiMitosisCounting", "TumorCellularity",
)  # fmt: skip
