"""How values look, which addresses one is led to, faults beside fields, curves, and a spreadsheet's cells."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from api.console import assets, formats
from api.console.charts import HEIGHT, WIDTH, usage_curves
from api.console.faults import WHOLE, by_field
from api.console.jobs import _cell
from api.console.session import Form, safe_next
from mhs_ray.domain.errors import ConflictError, Fault, InvalidInputError
from mhs_ray.domain.models import ImageStatus, ScanStatus
from mhs_ray.domain.states import JobState
from mhs_ray.store.blobs.local import LocalBlobs, LocalLimits


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"), (0, "0 ms"), (0.9994, "999 ms"), (0.9996, "1.0 s"), (12.34, "12.3 s"), (59.96, "1 min 00 s"),
        (185, "3 min 05 s"), (3599.7, "1 h 00 min"), (7620, "2 h 07 min"),
    ],
)  # fmt: skip
def test_durations_are_short_and_never_show_sixty_seconds(seconds: float | None, text: str) -> None:
    assert formats.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(None, "–"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")]
)
def test_sizes_are_in_powers_of_1024(count: int | None, text: str) -> None:
    assert formats.size(count) == text


def test_numbers_are_grouped_and_short() -> None:
    assert formats.number(1234567) == "1\u202f234\u202f567"
    assert formats.number(0.123456) == "0.1235"
    assert formats.number(2.0) == "2"
    assert formats.number(float("nan")) == "–"
    assert formats.number(True) == "True"


def test_every_state_has_its_own_tone() -> None:
    for value in (*JobState, *ImageStatus, *ScanStatus):
        assert value in formats.TONES or value in (ImageStatus.FAILED, ScanStatus.FAILED)
    assert "bad" in formats.badge("failed")
    assert "<script>" not in formats.badge("<script>")


def test_times_are_told_in_the_readers_zone_and_a_zone_that_is_none_is_utc() -> None:
    at = datetime(2026, 7, 1, 22, 30, 5, tzinfo=UTC)
    assert "2 Jul 2026, 00:30" in formats.time_filter(formats.zone("Europe/Berlin"))(at)
    for name in ("", "Nowhere/Land", "../../etc/passwd", "/etc/passwd", "x" * 100):
        assert formats.zone(name) is UTC
    assert 'datetime="2026-07-01T22:30:05+00:00"' in formats.time_filter(UTC)(at)


@pytest.mark.parametrize(
    "wanted",
    [
        None, "", "https://evil.example/console/", "//evil.example/console", "/console\\@evil", "/consoleX", "/v1/jobs",
        "javascript:alert(1)", "/console/sign-in?next=/console/jobs", "/console/\r\nSet-Cookie: a=b",
    ],
)  # fmt: skip
def test_after_signing_in_one_is_led_nowhere_but_into_the_console(wanted: str | None) -> None:
    assert safe_next(wanted) == "/console/"


def test_after_signing_in_one_is_led_back_with_the_filters() -> None:
    assert safe_next("/console/jobs?state=failed&q=a") == "/console/jobs?state=failed&q=a"


def test_faults_stand_beside_their_fields_and_a_conflict_above_the_form() -> None:
    error = InvalidInputError((Fault("$.name", "is taken"), Fault("$.env[0].name", "is no name"), Fault("$", "is odd")))
    assert by_field(error) == {"name": "Is taken.", "env[0].name": "Is no name.", WHOLE: "Is odd."}
    assert by_field(InvalidInputError.at("$.path", "is gone"), {"$.path": "where"}) == {"where": "Is gone."}
    assert by_field(ConflictError("in use")) == {WHOLE: "In use."}


def test_a_form_gives_the_last_of_a_field_and_all_of_a_list() -> None:
    form = Form([("scan", "1"), ("name", "  x "), ("scan", "2")])
    assert form.every("scan") == ["1", "2"]
    assert form["scan"] == "2"
    assert form.text("name") == "x"
    assert form.text("missing") == ""


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@sum", "\tx", "\rx"])
def test_no_text_becomes_a_formula_in_a_spreadsheet(text: str) -> None:
    assert _cell(text) == f"'{text}"
    assert _cell("plain") == "plain"


def test_curves_of_use_lie_in_their_frame(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path, "http://127.0.0.1:1", b"k" * 32, LocalLimits(min_free_bytes=0))
    series = [(0.0, 0.0, 100), (1.0, 2.0, 300), (3.0, 3.0, None), (4.0, 7.0, 200)]
    blobs.put("jobs/7/attempts/1/resources.json", io.BytesIO(json.dumps(series).encode()))
    cpu, memory = usage_curves(blobs, 7, 1)
    assert (cpu.title, cpu.peak, cpu.seconds) == ("CPU", 4.0, 4.0)
    assert (memory.title, memory.peak) == ("Memory", 300)
    for curve in (cpu, memory):
        for pair in curve.points.split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= WIDTH
            assert 0 <= y <= HEIGHT


@pytest.mark.parametrize("stored", [None, b"not json", b"[[1]]", b"[[0, 1, 2]]"])
def test_no_curve_is_drawn_of_what_is_missing_or_broken(tmp_path: Path, stored: bytes | None) -> None:
    blobs = LocalBlobs(tmp_path, "http://127.0.0.1:1", b"k" * 32, LocalLimits(min_free_bytes=0))
    if stored is not None:
        blobs.put("jobs/7/attempts/1/resources.json", stored)
    assert usage_curves(blobs, 7, 1) == []


def test_the_lock_pins_the_files_by_hash_and_names_no_host() -> None:
    lock = json.loads((assets.HERE / "package-lock.json").read_text())
    wanted = json.loads((assets.HERE / "package.json").read_text())["dependencies"]
    for name, version in wanted.items():
        entry = lock["packages"][f"node_modules/{name}"]
        assert entry["version"] == version, "an exact version, not a range"
        assert entry["integrity"].startswith("sha512-")
        assert "resolved" not in entry
