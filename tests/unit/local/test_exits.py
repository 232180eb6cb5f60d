"""Exit codes of `mhs test`: each failure has one, and the docs tell the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.local.exits import EXIT_CODES, exit_code
from mhs_ray.local.report import fitting_types

PAGE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "test-locally.md"


@pytest.mark.parametrize("code", list(FailureCode))
def test_every_failure_has_a_documented_exit_code(code: FailureCode) -> None:
    failure = Failure(code, "it happened", "mend it")
    document = {"state": "failed", "failure": {"code": str(code), "failure_class": str(failure.failure_class)}}
    assert exit_code(document) in EXIT_CODES
    assert exit_code(document) > 2


def test_the_page_has_the_same_table() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE))
    assert rows == {str(code): meaning for code, meaning in EXIT_CODES.items()}


def test_a_peak_fits_the_types_that_hold_it() -> None:
    gib = 1 << 30
    assert len(fitting_types(gib, None, 16 * gib) or ()) == 8
    assert fitting_types(40 * gib, None, 64 * gib) == ["g4dn.4xlarge", "g5.4xlarge", "g6.4xlarge", "g6e.2xlarge"]
    assert fitting_types(65 * gib, None, 64 * gib) == []
    assert fitting_types(None, None, 16 * gib) is None


def test_after_an_end_for_want_of_memory_only_larger_types_are_left() -> None:
    failure = Failure(FailureCode.OUT_OF_MEMORY, "it happened", "mend it")
    found = fitting_types(15 << 30, failure, 16 << 30)
    assert found is not None
    assert "g4dn.xlarge" not in found
    assert "g4dn.2xlarge" in found
