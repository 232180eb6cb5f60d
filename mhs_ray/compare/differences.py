"""The differences of two results of one slide, and whether they are within what is allowed. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mhs_ray.compare.match import Pair, match
from mhs_ray.compare.objects import Marked, marked
from mhs_ray.results.features import report_features
from mhs_ray.results.jsonwalk import canonical

_DEPTH: Final = 4
_TOLD: Final = ("results", "geojson", "qcFailReasons", "workflow")


@dataclass(frozen=True, slots=True)
class Side:
    """One result of one slide. body: as posted, with one scan; None where the container failed. why: its failure."""

    body: Mapping[str, Any] | None
    why: str = ""

    @property
    def scan(self) -> Mapping[str, Any]:
        """The scan's part of the body."""
        return self.body["scanResults"][0] if self.body else {}

    @property
    def digest(self) -> str:
        """The same for the same results, whatever the number of the scan."""
        told = {"caseResults": (self.body or {}).get("caseResults"), **{name: self.scan.get(name) for name in _TOLD}}
        return hashlib.sha256(canonical(told)).hexdigest()

    def features(self) -> list[dict[str, Any]]:
        """What it places on the slide: annotations and those of its report."""
        report = (self.scan.get("workflow") or {}).get("report") or {}
        return [*((self.scan.get("geojson") or {}).get("features") or ()), *report_features(report)]


@dataclass(frozen=True, slots=True)
class Rules:
    """How annotations are matched. max_distance: of centroids, level-0 pixels."""

    min_iou: float = 0.5
    max_distance: float = 16.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What is allowed; None: anything. Changes are relative to the first side, in per cent; f1 from 0 to 1."""

    count_change: float | None = None
    area_change: float | None = None
    value_change: float | None = None
    f1: float | None = None
    identical: bool = False


@dataclass(frozen=True, slots=True)
class SlideDifference:
    """How the second result differs from the first on one slide. document: plain JSON. pairs, a, b: for pictures."""

    document: dict[str, Any]
    pairs: Sequence[Pair] = ()
    a: Sequence[Marked] = ()
    b: Sequence[Marked] = field(default=())


def compare(name: str, first: Side, second: Side, rules: Rules) -> SlideDifference:
    """Compare two results of the slide `name`."""
    failed = {"a": first.why, "b": second.why} if first.body is None or second.body is None else None
    if failed is not None:
        return SlideDifference({"slide": name, "compared": False, "failed": failed})
    (a, lost_a), (b, lost_b) = marked(first.features()), marked(second.features())
    pairs = match(a, b, min_iou=rules.min_iou, max_distance=rules.max_distance)
    ious = [p.iou for p in pairs if p.iou is not None]
    moved = [abs(x - y) for p in pairs if (x := a[p.a].score) is not None and (y := b[p.b].score) is not None]
    document = {
        "slide": name,
        "compared": True,
        "identical": first.digest == second.digest,
        **_numbers(a, b, len(pairs)),
        "mean_iou": _mean(ious),
        "mean_distance": _mean([p.distance for p in pairs]),
        "mean_score_change": _mean(moved),
        "without_shape": {"a": lost_a, "b": lost_b},
        "classes": _classes(a, b, pairs),
        "values": _values(first, second),
    }
    return SlideDifference(document, pairs, a, b)


def _numbers(a: Sequence[Marked], b: Sequence[Marked], matched: int) -> dict[str, Any]:
    area_a, area_b = sum(m.area for m in a), sum(m.area for m in b)
    both = len(a) + len(b)
    return {
        "count": {"a": len(a), "b": len(b), "change": change(len(a), len(b))},
        "area": {"a": round(area_a, 1), "b": round(area_b, 1), "change": change(area_a, area_b)},
        "matched": matched,
        "only_a": len(a) - matched,
        "only_b": len(b) - matched,
        "f1": round(2 * matched / both, 4) if both else 1.0,
    }


def _classes(a: Sequence[Marked], b: Sequence[Marked], pairs: Sequence[Pair]) -> dict[str, Any]:
    matched = Counter(a[p.a].name for p in pairs)
    return {
        name: _numbers([m for m in a if m.name == name], [m for m in b if m.name == name], matched[name])
        for name in sorted({m.name for m in (*a, *b)})
    }


def _values(first: Side, second: Side) -> dict[str, Any]:
    a, b = _plain_numbers(first), _plain_numbers(second)
    found = {}
    for name in sorted(a.keys() | b.keys()):
        x, y = a.get(name), b.get(name)
        found[name] = {"a": x, "b": y, "change": None if x is None or y is None else change(x, y)}
    return found


def _plain_numbers(side: Side) -> dict[str, float]:
    """Return every number that was reported beside the annotations, by its path."""
    report = (side.scan.get("workflow") or {}).get("report") or {}
    told = {"scores": report.get("scores"), "results": report.get("results")} if report else {}
    sources = {"caseResults": (side.body or {}).get("caseResults"), "results": side.scan.get("results"), "report": told}
    found: dict[str, float] = {}

    def walk(path: str, value: Any, depth: int) -> None:
        if isinstance(value, bool):
            return
        if isinstance(value, int | float):
            found[path] = float(value)
        elif isinstance(value, Mapping) and depth:
            for key, inner in value.items():
                walk(f"{path}.{key}", inner, depth - 1)

    for name, value in sources.items():
        walk(name, value, _DEPTH)
    return found


def change(a: float, b: float) -> float | None:
    """Return by how many per cent `b` is more than `a`; None where `a` is nothing and `b` is not."""
    if a == b:
        return 0.0
    return round(100 * (b - a) / abs(a), 3) if a else None


def faults_of(document: Mapping[str, Any], limits: Limits) -> list[str]:
    """Return what of a slide's differences is not allowed, as sentences. A slide that failed never is."""
    slide = document["slide"]
    if not document["compared"]:
        return [f"{slide}: not compared: {_why(document['failed'])}"]
    found = []
    if limits.identical and not document["identical"]:
        found.append(f"{slide}: the results are not identical")
    for name, limit in (("count", limits.count_change), ("area", limits.area_change)):
        if limit is not None and _beyond(document[name]["change"], limit):
            found.append(f"{slide}: {name} {_told(document[name])}; at most {limit:g} % are allowed")
    if limits.f1 is not None and document["f1"] < limits.f1:
        found.append(f"{slide}: F1 of matched annotations is {document['f1']:g}; at least {limits.f1:g} is asked for")
    if limits.value_change is not None:
        found += [
            f"{slide}: {name} {_told(value)}; at most {limits.value_change:g} % are allowed"
            for name, value in document["values"].items()
            if _beyond(value["change"], limits.value_change)
        ]
    return found


def _beyond(found: float | None, limit: float) -> bool:
    return found is None or abs(found) > limit


def _told(value: Mapping[str, Any]) -> str:
    by = f" ({value['change']:+g} %)" if value["change"] is not None else ""
    return f"{_shown(value['a'])} → {_shown(value['b'])}{by}"


def _shown(value: float | None) -> str:
    return "nothing" if value is None else f"{value:g}"


def _why(failed: Mapping[str, str]) -> str:
    return "; ".join(f"{side.upper()} {why}" for side, why in failed.items() if why)


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None
