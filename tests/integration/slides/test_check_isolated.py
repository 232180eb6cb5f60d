from __future__ import annotations

import os
import random
import struct
import time
import zipfile
from pathlib import Path

import pytest

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.archive import ArchiveLimits, unpack_series_isolated, unpacked_bytes_isolated
from mhs_ray.slides.check import CheckLimits, check_slide, check_slide_isolated
from mhs_ray.slides.isolated import IsolationLimits, run_isolated


@pytest.fixture
def slide(tmp_path: Path, slide_bytes: bytes) -> Path:
    path = tmp_path / "slide"
    path.write_bytes(slide_bytes)
    return path


def test_the_isolated_check_says_what_the_direct_one_says(slide: Path) -> None:
    assert check_slide_isolated(slide) == check_slide(slide)


def test_a_bad_slide_keeps_its_reason_across_the_process(slide: Path) -> None:
    os.truncate(slide, slide.stat().st_size // 2)
    with pytest.raises(SlideError, match="cut off") as error:
        check_slide_isolated(slide)
    assert error.value.reason == "truncated"


def test_a_check_that_hangs_is_ended(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(SlideError) as error:
        check_slide_isolated(pipe)
    assert error.value.reason == "not-a-slide"
    with pytest.raises(SlideError, match=r"could not be read in 0\.2 s") as error:
        run_isolated("timeit", "slide", ["import time; time.sleep(30)"], IsolationLimits(timeout_s=0.2))
    assert error.value.reason == "unreadable"


def test_a_decoder_that_crashes_is_an_unreadable_slide() -> None:
    """timeit takes each argument as a line of a program, the bounds among them."""
    with pytest.raises(SlideError, match=r"crashed its decoder \(SIGSEGV\)") as error:
        run_isolated("timeit", "slide", ["import os; os.kill(os.getpid(), 11)"], IsolationLimits())
    assert error.value.reason == "unreadable"


def test_processor_time_is_bounded(slide: Path) -> None:
    with pytest.raises(SlideError, match="processor time"):
        check_slide_isolated(slide, CheckLimits(cpu_s=0))


def test_the_process_sees_no_environment(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setenv("PYTHONPATH", "/nonexistent")
    assert check_slide_isolated(slide).vendor == "aperio"


def test_a_zip_is_unpacked_in_a_process_of_its_own(tmp_path: Path, dicom: Path) -> None:
    archive = tmp_path / "z"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.write(dicom, "a/b")
    assert unpacked_bytes_isolated(archive) == dicom.stat().st_size
    files = unpack_series_isolated(archive, tmp_path / "out")
    assert [f.read_bytes() for f in files] == [dicom.read_bytes()]
    with pytest.raises(SlideError) as error:
        unpack_series_isolated(archive, tmp_path / "out2", ArchiveLimits(max_bytes=100))
    assert error.value.reason == "too-large"
    assert not (tmp_path / "out2").exists()


def test_a_zip_whose_directory_claims_the_world_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "z"
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, 2**31, 0, 0)
    archive.write_bytes(b"PK\3\4" + b"\0" * 100 + end)
    with pytest.raises(SlideError) as error:
        unpacked_bytes_isolated(archive)
    assert error.value.reason in {"truncated", "bomb"}


@pytest.mark.parametrize("seed", range(12))
def test_a_slide_with_random_damage_ends_soon_in_facts_or_a_clear_error(
    tmp_path: Path, slide_bytes: bytes, dicom: Path, seed: int
) -> None:
    rng = random.Random(seed)
    data = bytearray(slide_bytes if seed % 3 else dicom.read_bytes())
    for _ in range(rng.choice((1, 20, 400))):
        at = rng.randrange(len(data) - 8)
        data[at : at + 4] = rng.randbytes(4)
    path = tmp_path / "damaged"
    path.write_bytes(bytes(data))
    started = time.monotonic()
    try:
        reason = check_slide_isolated(path, CheckLimits(timeout_s=20)).format
    except SlideError as error:
        reason = error.reason
        assert len(str(error)) < 2000  # noqa: PT017
    assert reason in {"tiff", "dicom", "truncated", "unreadable", "unsupported", "not-a-slide", "bomb", "too-large"}
    assert time.monotonic() - started < 25
