"""Manifests: CSV and Parquet, and every fault of every row at once."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mhs_ray.cohorts.manifest import read_manifest
from mhs_ray.domain.errors import InvalidInputError


def _csv(folder: Path, text: str, name: str = "slides.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_csv_gives_slides_ids_and_labels(tmp_path: Path) -> None:
    made = read_manifest(
        _csv(tmp_path, "id,slide,stain\nA,/s/a.svs,HE\n\nB,s3://b/x/b.svs,\n,https://h.example/c%20d.svs?X-Sig=1,IHC\n")
    )
    assert made.faults == []
    assert [(r.row, r.id, r.slide) for r in made.rows] == [
        (1, "A", "/s/a.svs"), (2, "B", "s3://b/x/b.svs"), (3, "c d", "https://h.example/c%20d.svs?X-Sig=1"),
    ]  # fmt: skip
    assert [r.labels for r in made.rows] == [{"stain": "HE"}, {"stain": ""}, {"stain": "IHC"}]
    assert made.count == 3


def test_a_path_is_relative_to_the_manifest(tmp_path: Path) -> None:
    (row,) = read_manifest(_csv(tmp_path, "slide\nsub/a.svs\n")).rows
    assert (row.slide, row.id) == (str(tmp_path / "sub" / "a.svs"), "a")


def test_parquet_keeps_types_and_takes_numbers_as_ids(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    table = {"slide": ["/a.svs", "/b.svs"], "slide_id": [7, 8], "age": [61.5, None], "ok": [True, False]}
    pq.write_table(pa.table(table), path)
    made = read_manifest(path)
    assert [r.id for r in made.rows] == ["7", "8"]
    assert made.rows[0].labels == {"age": 61.5, "ok": True}
    assert made.faults == []


def test_all_faults_are_told_at_once_with_row_and_column(tmp_path: Path) -> None:
    made = read_manifest(
        _csv(
            tmp_path,
            "id,slide\nA,/s/a.svs\nA,/s/b.svs\n,\nC,ftp://h/c.svs\nD,/s/a.svs\nE\nF,https://\nG,/s/\x07.svs\n"
            f"H,/s/h.svs\n{'x' * 201},/s/i.svs\n",
        )
    )
    found = [(f.row, f.column, f.reason) for f in made.faults]
    assert [(r, c) for r, c, _ in found] == [
        (2, "id"), (3, "slide"), (4, "slide"), (5, "slide"), (6, "row"), (7, "slide"), (8, "slide"), (10, "id"),
    ]  # fmt: skip
    reasons = [reason for _, _, reason in found]
    assert reasons[0] == "'A' is also the id of row 1"
    assert reasons[1] == "is empty"
    assert "ftp:// is not read" in reasons[2]
    assert reasons[3] == "it is the same slide as row 1"
    assert reasons[4] == "it has 1 cells, the first line has 2"
    assert [r.id for r in made.rows] == ["A", "H"]
    assert made.count == 10


def test_two_slides_of_one_name_need_ids(tmp_path: Path) -> None:
    made = read_manifest(_csv(tmp_path, "slide\n/a/x.svs\n/b/x.svs\n"))
    assert [f.reason for f in made.faults] == ["'x' is also the id of row 1; give them ids of their own"]


def test_fresh_signatures_do_not_make_another_manifest(tmp_path: Path) -> None:
    url = "https://b.s3.amazonaws.com/a.svs?X-Amz-Date={}&X-Amz-Expires=3600&X-Amz-Signature={}"
    first = read_manifest(_csv(tmp_path, f"slide\n{url.format('20261126T000000Z', 'aa')}\n"))
    again = read_manifest(_csv(tmp_path, f"slide\n{url.format('20261127T000000Z', 'bb')}\n"))
    other = read_manifest(_csv(tmp_path, "slide\nhttps://b.s3.amazonaws.com/b.svs\n"))
    assert first.digest == again.digest != other.digest


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("m.csv", "name\nx\n", "has no column `slide`"),
        ("m.csv", "", "is empty"),
        ("m.csv", "slide,path\na,b\n", "two columns for 'slide'"),
        ("m.xlsx", "x", "neither .csv nor .tsv nor .parquet"),
        ("m.parquet", "PAR0", "is no Parquet file"),
        ("m.csv", 'slide\n"a\n', "cannot be read"),
    ],
)
def test_what_is_no_manifest_is_refused_whole(tmp_path: Path, name: str, text: str, told: str) -> None:
    with pytest.raises(InvalidInputError, match=told):
        read_manifest(_csv(tmp_path, text, name))


def test_a_manifest_without_rows_has_that_fault(tmp_path: Path) -> None:
    made = read_manifest(_csv(tmp_path, "slide\n"))
    assert [(f.row, f.reason) for f in made.faults] == [(0, "the manifest has no rows")]
