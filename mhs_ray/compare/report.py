"""Differences for people: pictures side by side, and one HTML page that holds everything."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mhs_ray.compare.differences import SlideDifference
from mhs_ray.results.overlay import draw_overlay

_GAP: Final = 12
_RING: Final = 7  # pixels around the place of an annotation that only one side has
_ONLY: Final = {"a": (0, 90, 255), "b": (255, 120, 0)}
_COLUMNS: Final = ("slide", "count", "area", "matched", "only A", "only B", "F1", "mean IoU", "same")


def side_by_side(
    thumbnail: NDArray[np.uint8],
    downsample: float,
    first: Sequence[dict[str, Any]],
    second: Sequence[dict[str, Any]],
    difference: SlideDifference,
) -> Image.Image:
    """Return the slide twice, A left and B right; what only one of them has is ringed.

    thumbnail: RGB, shape (height, width, 3). downsample: level-0 pixels per pixel of it.
    """
    height, width = thumbnail.shape[:2]
    whole = Image.new("RGB", (2 * width + _GAP, height), (255, 255, 255))
    used = {"a": {p.a for p in difference.pairs}, "b": {p.b for p in difference.pairs}}
    for side, features, found, left in (
        ("a", first, difference.a, 0),
        ("b", second, difference.b, width + _GAP),
    ):
        picture = draw_overlay(thumbnail, downsample, list(features))
        pen = ImageDraw.Draw(picture)
        for i, mark in enumerate(found):
            if i not in used[side]:
                x0, y0, x1, y1 = (v / downsample for v in mark.shape.bounds)
                pen.ellipse((x0 - _RING, y0 - _RING, x1 + _RING, y1 + _RING), outline=_ONLY[side], width=2)
        whole.paste(picture, (left, 0))
    return whole


def row_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a slide's differences as one row of a table."""
    if not document["compared"]:
        why = "; ".join(f"{side.upper()} {text}" for side, text in document["failed"].items() if text)
        return {"slide": document["slide"], "count": f"not compared: {why}"}
    return {
        "slide": document["slide"],
        "count": _pair(document["count"]),
        "area": _pair(document["area"]),
        "matched": document["matched"],
        "only A": document["only_a"],
        "only B": document["only_b"],
        "F1": document["f1"],
        "mean IoU": document["mean_iou"],
        "same": document["identical"],
    }


def columns() -> tuple[str, ...]:
    """Return the headings of `row_of`."""
    return _COLUMNS


def _pair(value: Mapping[str, Any]) -> str:
    a, b, by = value["a"], value["b"], value["change"]
    if a is None or b is None:
        return f"{'–' if a is None else f'{a:g}'} → {'–' if b is None else f'{b:g}'}"
    return f"{a:g}" if a == b else f"{a:g} → {b:g}" + (f" ({by:+g} %)" if by is not None else "")


def write_page(path: Path, document: Mapping[str, Any], pictures: Mapping[str, Image.Image]) -> None:
    """Write one page without anything outside of it. document: of `mhs compare`; pictures: by slide."""
    verdict = "within what is allowed" if not document["faults"] else "more than is allowed"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{_text(document['a'])} and {_text(document['b'])}</title><style>{_STYLE}</style>",
        f"<h1>{_text(document['a'])} <small>and</small> {_text(document['b'])}</h1>",
        f"<p class={'bad' if document['faults'] else 'good'}>The difference is {verdict}.</p>",
        *(f"<p class=bad>{_text(fault)}</p>" for fault in document["faults"]),
        _table(_COLUMNS, [row_of(slide) for slide in document["slides"]]),
    ]
    for slide in document["slides"]:
        name = slide["slide"]
        parts.append(f"<h2>{_text(name)}</h2>")
        if name in pictures:
            shown = "A left, B right; blue and orange rings: only there"
            parts.append(f"<figure><img alt='{shown}' src='{_inline(pictures[name])}'><figcaption>{shown}</figure>")
        if slide["compared"]:
            classes = [{"class": n, **row_of({**slide, **c})} for n, c in slide["classes"].items()]
            parts.append(_table(("class", *_COLUMNS[1:7]), classes))
            values = [{"value": n, "A → B": _pair(v)} for n, v in slide["values"].items()]
            if values:
                parts.append(_table(("value", "A → B"), values))
    path.write_text("\n".join(parts), encoding="utf-8")


def _table(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{_text(name)}" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{_text(_cell(row.get(n)))}' for n in names)}" for row in rows)
    return f"<table><thead><tr>{head}<tbody>{body}</table>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _text(value: object) -> str:
    return html.escape(str(value))


def _inline(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:80rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}"
    "table{border-collapse:collapse;margin:1rem 0}th,td{text-align:left;padding:.3rem .8rem}"
    "th,td{border-bottom:1px solid #ccc}"
    "img{max-width:100%}.good{color:#166534}.bad{color:#b91c1c}small{font-weight:400}figure{margin:0}"
)
