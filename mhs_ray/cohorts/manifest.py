"""A manifest: CSV or Parquet, one slide a row, read whole and with every fault at once.

Columns: ``slide`` (an absolute path, s3://bucket/key, http(s) URL, or scan:ID), ``id`` (what the slide is called; the
file's name when left out), and any others, which come back beside the results.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from mhs_ray.domain.cohorts import RowFault
from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.slides.presigned import stable_identity

MAX_LABELS: Final = 50
_MAX_LABEL: Final = 1000
_SCHEMES: Final = ("s3", "http", "https", "file", "scan")
_NAMES: Final = {"slide": "slide", "path": "slide", "url": "slide", "slide_id": "id", "id": "id"}


@dataclass(frozen=True, slots=True)
class Row:
    """One slide. row: 1 for the first."""

    row: int
    id: str
    slide: str = field(repr=False)
    labels: Mapping[str, Any] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """Return it for the wire."""
        return {"row": self.row, "id": self.id, "slide": self.slide, "labels": dict(self.labels)}


@dataclass(frozen=True, slots=True)
class Manifest:
    """rows: those that can be read, in order; count: all of them; digest: of the good rows, hex."""

    rows: Sequence[Row]
    faults: Sequence[RowFault]
    count: int
    digest: str


def read_manifest(path: Path) -> Manifest:
    """Read `path` (.csv, .tsv, .parquet or .pq). Raises InvalidInputError for what is no manifest at all."""
    if not path.is_file():
        raise InvalidInputError.at("MANIFEST", f"there is no file {path}")
    suffix = path.suffix.lower()
    try:
        if suffix in (".parquet", ".pq"):
            columns, records = _parquet(path)
        elif suffix in (".csv", ".tsv", ".txt"):
            columns, records = _csv(path, "\t" if suffix == ".tsv" else ",")
        else:
            raise InvalidInputError.at("MANIFEST", f"{path.name} ends in neither .csv nor .tsv nor .parquet")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError.at("MANIFEST", f"{path.name} cannot be read: {error}") from None
    names = _columns(path, columns)
    return _checked(names, records, path.absolute().parent)


def _columns(path: Path, columns: Sequence[str]) -> dict[str, str]:
    """Return by column what it means: ``slide``, ``id``, or its own name for a label."""
    found: dict[str, str] = {}
    for column in columns:
        name = _NAMES.get(column.strip().lower(), column.strip())
        if name in found.values():
            raise InvalidInputError.at("MANIFEST", f"{path.name} has two columns for {name!r}")
        found[column] = name
    if "slide" not in found.values():
        raise InvalidInputError.at(
            "MANIFEST", f"{path.name} has no column `slide`; it has {', '.join(columns)[:200] or 'none'}"
        )
    if len(found) > MAX_LABELS + 2:
        raise InvalidInputError.at("MANIFEST", f"{path.name} has {len(found)} columns; at most {MAX_LABELS} labels")
    return found


def _csv(path: Path, delimiter: str) -> tuple[list[str], Iterator[tuple[int, Mapping[str, Any] | str]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file, delimiter=delimiter, strict=True) if line]
    if not lines:
        raise InvalidInputError.at("MANIFEST", f"{path.name} is empty")
    head = lines[0]

    def records() -> Iterator[tuple[int, Mapping[str, Any] | str]]:
        for number, line in enumerate(lines[1:], 1):
            if len(line) != len(head):
                yield number, f"it has {len(line)} cells, the first line has {len(head)}"
            else:
                yield number, dict(zip(head, line, strict=True))

    return head, records()


def _parquet(path: Path) -> tuple[list[str], Iterator[tuple[int, Mapping[str, Any] | str]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise InvalidInputError.at("MANIFEST", f"{path.name} is no Parquet file: {str(error)[:200]}") from None
    return list(table.column_names), ((i, dict(r)) for i, r in enumerate(table.to_pylist(), 1))


def _checked(
    names: Mapping[str, str], records: Iterable[tuple[int, Mapping[str, Any] | str]], folder: Path
) -> Manifest:
    rows: list[Row] = []
    faults: list[RowFault] = []
    seen: dict[str, int] = {}
    places: dict[str, int] = {}
    digest = hashlib.sha256()
    count = 0
    for number, record in records:
        count += 1
        if isinstance(record, str):
            faults.append(RowFault(number, "row", record))
            continue
        values = {names[column]: value for column, value in record.items()}
        where, found = _slide(values.get("slide"), folder)
        mine = [] if found is None else [RowFault(number, "slide", found)]
        name, found = _id(values.get("id"), where)
        if found is not None:
            mine.append(RowFault(number, "id", found))
        elif name:
            if name in seen:
                told = f"{name!r} is also the id of row {seen[name]}"
                mine.append(RowFault(number, "id", told if values.get("id") else f"{told}; give them ids of their own"))
            seen.setdefault(name, number)
        if where:
            place = stable_identity(where) if where.startswith("http") else where
            if place in places:
                mine.append(RowFault(number, "slide", f"it is the same slide as row {places[place]}"))
            places.setdefault(place, number)
        labels, label_faults = _labels(number, values)
        mine += label_faults
        faults += mine
        if not mine:
            rows.append(Row(number, name, where, labels))
            place = stable_identity(where) if where.startswith("http") else where
            digest.update(json.dumps([number, name, place, labels], sort_keys=True).encode())
    if not count:
        faults.append(RowFault(0, "row", "the manifest has no rows"))
    return Manifest(rows, faults, count, digest.hexdigest())


def _slide(value: object, folder: Path) -> tuple[str, str | None]:
    if not isinstance(value, str) or not value.strip():
        return "", "is empty" if value in (None, "") or isinstance(value, str) else f"{str(value)[:60]!r} is no text"
    text = value.strip()
    if not text.isprintable():
        return "", "holds control characters"
    scheme = text.split(":", 1)[0].lower() if "://" in text or text.startswith("scan:") else ""
    if scheme:
        if scheme not in _SCHEMES:
            return "", f"{scheme}:// is not read; give a path, s3:// or https://"
        try:
            parts = urlsplit(text)
        except ValueError:
            return "", "is a malformed URL"
        if scheme in ("http", "https", "s3") and (not parts.netloc or parts.path in ("", "/")):
            return "", f"{text.split('?')[0][:200]} names no slide"
        return text, None
    # A path beside the manifest is what people write; the platform needs it whole.
    return str(folder / Path(text).expanduser()), None


def _id(value: object, where: str) -> tuple[str, str | None]:
    if value in (None, ""):
        if not where:
            return "", None  # its slide is told of already
        stem = (
            where.replace(":", "-") if where.startswith("scan:") else PurePosixPath(unquote(urlsplit(where).path)).stem
        )
        return stem[:200], None if stem else "cannot be told from the slide's name; give one"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return "", f"{str(value)[:60]!r} is neither text nor a whole number"
    text = str(value).strip()
    if not text or not text.isprintable():
        return "", "is empty or holds control characters"
    return (text, None) if len(text) <= 200 else ("", "is longer than 200 characters")


def _labels(number: int, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[RowFault]]:
    labels: dict[str, Any] = {}
    faults: list[RowFault] = []
    for name, value in values.items():
        if name in ("slide", "id"):
            continue
        kept = value if isinstance(value, str | int | float | bool | None) else str(value)
        if isinstance(kept, float) and kept != kept:  # NaN is how a table says that there is nothing
            kept = None
        if isinstance(kept, str) and len(kept) > _MAX_LABEL:
            faults.append(RowFault(number, name, f"is longer than {_MAX_LABEL} characters"))
        else:
            labels[name] = kept
    return labels, faults
