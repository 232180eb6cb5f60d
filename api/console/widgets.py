"""A result as widgets: the seven report types of the contract, and what else was posted, each as a few plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mhs_ray.store.sql.results import StoredResult

_MAX_ROWS: Final = 100
_MAX_PAIRS: Final = 2_000_000  # objects times corners that are looked at to count objects in regions


@dataclass(frozen=True, slots=True)
class Bar:
    """A name, its value as it is shown, and what share of the widest bar it has (0 to 1; None for no bar)."""

    name: str
    value: Any
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A small table; the first column names, the others hold values."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Widget:
    """One box of a result. big: the one number or word that matters, if there is one."""

    title: str
    big: Any = None
    note: str = ""
    bars: Sequence[Bar] = ()
    table: Table | None = None
    link: str | None = None


def widgets_of(result: StoredResult) -> list[Widget]:
    """Return the widgets of a stored result, what people look for first at the top."""
    workflow = result.workflow or {}
    found = [*_case(result), *report_widgets(workflow.get("report") or {})]
    if workflow.get("key") and workflow.get("value") is not None:
        found.insert(0, Widget(str(workflow["key"]), workflow["value"], note=_origin(workflow)))
    elif workflow.get("model_name"):
        found.append(Widget("Model", workflow["model_name"], note=_origin(workflow, named=True)))
    found += _free(result)
    counts = (result.summary or {}).get("annotations") or {}
    if counts:
        found.append(Widget("Annotations", result.features, bars=_scaled(counts.items())))
    return found


def _origin(workflow: Mapping[str, Any], named: bool = False) -> str:
    words = [] if named else [str(workflow.get("model_name") or "")]
    words += [str(workflow.get("provider") or ""), "research use only" if _ruo(workflow.get("ruo")) else ""]
    return " · ".join(w for w in words if w)


def _ruo(value: Any) -> bool:
    return value is True or value == "True"


def _case(result: StoredResult) -> Iterable[Widget]:
    case = result.case_results or {}
    triage = case.get("triage")
    if isinstance(triage, Mapping):
        yield Widget("Triage", triage.get("category"), note=f"score {triage.get('score')}")
    plain = [Bar(str(k), v) for k, v in case.items() if k != "triage" and isinstance(v, str | int | float)]
    if plain:
        yield Widget("Case results", bars=plain[:_MAX_ROWS])
    if result.qc_fail_reasons is not None:
        reasons = list(result.qc_fail_reasons)
        yield Widget("Quality", "failed" if reasons else "passed", note="; ".join(reasons))


def _free(result: StoredResult) -> Iterable[Widget]:
    report = result.report or {}
    if isinstance(report.get("summary"), str):
        yield Widget("Summary", note=report["summary"])
    plain = [
        Bar(str(k), v) for k, v in report.items() if k != "summary" and isinstance(v, str | int | float)
    ]  # fmt: skip
    nested = [k for k, v in report.items() if isinstance(v, list | dict)]
    if plain or nested:
        note = f"also {', '.join(nested[:8])}: see the JSON" if nested else ""
        yield Widget("Results", bars=plain[:_MAX_ROWS], note=note)
    if result.external_url:
        # A container says what this is: only an address of the web may be followed.
        safe = result.external_url.lower().startswith(("https://", "http://"))
        yield Widget(
            "Report elsewhere", note="" if safe else result.external_url, link=result.external_url if safe else None
        )


def report_widgets(report: Mapping[str, Any]) -> list[Widget]:
    """Return the widgets of one of the contract's report types; [] for none."""
    match report.get("type"):
        case "Basic":
            return _basic(report)
        case "WholeSlideDifferential":
            return [
                _scores(report),
                _positivity(report["points"], report["positivity_threshold"]),
                _types(report["points"]),
            ]
        case "SemiQuantitativeDifferential":
            return [_scores(report), _types(report["points"])]
        case "AreaDifferential":
            return _areas(report)
        case "RegionCounting":
            return _counted(report, "Objects")
        case "AiMitosisCounting":
            return _counted(report, "Mitoses")
        case "TumorCellularity":
            return _cellularity(report)
    return []


def _basic(report: Mapping[str, Any]) -> list[Widget]:
    found = []
    if report.get("results"):
        found.append(Widget("Results", bars=[Bar(r["name"], r["result"]) for r in report["results"][:_MAX_ROWS]]))
    if report.get("segments"):
        found.append(_segments("Segments", report["segments"]))
    return found


def _segments(title: str, segments: Sequence[Mapping[str, Any]]) -> Widget:
    rows = [
        (s["name"], s.get("result") or "–", len(s["feature_collection"]["features"])) for s in segments[:_MAX_ROWS]
    ]  # fmt: skip
    return Widget(title, table=Table(("Segment", "Result", "Areas"), rows))


def _scores(report: Mapping[str, Any]) -> Widget:
    bars = _scaled(report["scores"].items())
    return Widget("Scores", bars[0].value if len(bars) == 1 else None, bars[0].name if len(bars) == 1 else "", bars)


def _positivity(points: Sequence[Mapping[str, Any]], threshold: float) -> Widget:
    positive = sum(1 for p in points if p.get("score") is not None and p["score"] >= threshold)
    share = f"{100 * positive / len(points):.1f} %" if points else "–"
    bars = _scaled([("at or above", positive), ("below", len(points) - positive)])
    return Widget("Positivity", share, f"points with a score of {threshold:g} or more", bars)


def _types(points: Sequence[Mapping[str, Any]]) -> Widget:
    counts = Counter(str(p["type"]) for p in points)
    return Widget("Points by type", len(points), bars=_scaled(counts.most_common(_MAX_ROWS)))


def _areas(report: Mapping[str, Any]) -> list[Widget]:
    regions = report["regions"]
    rows = [
        (_name(r["region"], i), r["weight"], r["score"], len(r["points"])) for i, r in enumerate(regions[:_MAX_ROWS])
    ]
    points = [p for r in regions for p in r["points"]]
    return [
        _scores(report),
        Widget("Regions", len(regions), table=Table(("Region", "Weight", "Score", "Points"), rows)),
        _positivity(points, report["positivity_threshold"]),
    ]


def _counted(report: Mapping[str, Any], word: str) -> list[Widget]:
    objects, regions = report["objects"], report["regions"]
    centres = [(o["x"] + o["width"] / 2, o["y"] + o["height"] / 2) for o in objects]
    outlines = [_outline(r) for r in regions[:_MAX_ROWS]]
    cheap = len(centres) * sum(len(o) for o in outlines) <= _MAX_PAIRS
    rows = [
        (_name(r, i), sum(_inside(c, outline) for c in centres) if cheap and outline else "–")
        for i, (r, outline) in enumerate(zip(regions, outlines, strict=False))
    ]
    found = [Widget(word, len(objects), f"in {len(regions)} region{'' if len(regions) == 1 else 's'}")]
    if rows:
        found.append(Widget(f"{word} by region", table=Table(("Region", word), rows)))
    return found


def _cellularity(report: Mapping[str, Any]) -> list[Widget]:
    found = []
    for label, entry in list(report["threshold_map"].items())[:20]:
        bars = _scaled((c["label"], c["count"]) for c in entry["counts"])
        big = (
            f"{100 * entry['tumor_cellularity']:.1f} %"
            if entry["tumor_cellularity"] <= 1
            else entry["tumor_cellularity"]
        )
        found.append(Widget(f"Tumor cellularity at {label}", big, f"area {entry['area']:g}", bars))
        for name, shares in (entry.get("distributions") or {}).items():
            bars = [
                Bar(s["label"], f"{100 * s['fraction']:.1f} %, area {s['area']:g}", _unit(s["fraction"]))
                for s in shares
            ]
            found.append(Widget(f"{name} at {label}", bars=bars[:_MAX_ROWS]))
    found += [_segments(group, segments) for group, segments in (report.get("other_segments") or {}).items()]
    return found


def _scaled(pairs: Iterable[tuple[str, Any]]) -> list[Bar]:
    items = list(pairs)[:_MAX_ROWS]
    top = max((abs(v) for _, v in items if isinstance(v, int | float)), default=0)
    return [Bar(str(k), v, abs(v) / top if top and isinstance(v, int | float) else None) for k, v in items]


def _unit(value: float) -> float:
    return min(1.0, max(0.0, value))


def _name(feature: Mapping[str, Any], index: int) -> str:
    name = (feature.get("properties") or {}).get("name")
    return name if isinstance(name, str) and name else f"Region {index + 1}"


def _outline(feature: Mapping[str, Any]) -> Sequence[Sequence[float]]:
    geometry = feature.get("geometry") or {}
    rings = geometry.get("coordinates") or []
    return rings[0] if geometry.get("type") == "Polygon" and rings else []


def _inside(point: tuple[float, float], outline: Sequence[Sequence[float]]) -> bool:
    x, y = point
    inside = False
    for (x0, y0, *_), (x1, y1, *_) in zip(outline, [*outline[1:], outline[0]], strict=True):
        if (y0 > y) != (y1 > y) and x < (x1 - x0) * (y - y0) / (y1 - y0) + x0:
            inside = not inside
    return inside
