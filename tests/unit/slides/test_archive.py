from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from mhs_ray.domain.errors import SlideError
from mhs_ray.slides.archive import ArchiveLimits, unpack_series


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_files_are_unpacked_under_names_of_our_own(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", {"../../x": b"1", "/etc/passwd": b"2", "d/": b"", "__MACOSX/y": b"3"})
    files = unpack_series(archive, tmp_path / "out")
    assert [f.name for f in files] == ["0000.dcm", "0001.dcm"]
    assert [f.read_bytes() for f in files] == [b"1", b"2"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "out"]


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (ArchiveLimits(max_files=2), "bomb"),
        (ArchiveLimits(max_bytes=1 << 20), "too-large"),
        (ArchiveLimits(ratio_from_bytes=1 << 20), "bomb"),
    ],
)
def test_a_zip_bomb_leaves_nothing_behind(tmp_path: Path, limits: ArchiveLimits, reason: str) -> None:
    archive = pack(tmp_path / "a.zip", {str(i): b"\0" * (3 << 20) for i in range(3)})
    with pytest.raises(SlideError) as error:
        unpack_series(archive, tmp_path / "out", limits)
    assert error.value.reason == reason
    assert not (tmp_path / "out").exists()


def test_a_zip_that_lies_about_its_sizes_is_stopped(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", {"a": b"\0" * (3 << 20)})
    data = archive.read_bytes().replace((3 << 20).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    archive.write_bytes(data)
    with pytest.raises(SlideError):
        unpack_series(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keep", [10, 200, -30])
def test_a_cut_off_zip_is_refused(tmp_path: Path, keep: int) -> None:
    archive = pack(tmp_path / "a.zip", {"a": bytes(range(256)) * 50})
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(SlideError, match="upload it again") as error:
        unpack_series(archive, tmp_path / "out")
    assert error.value.reason == "truncated"


def test_a_zip_without_files_is_no_slide(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="without files"):
        unpack_series(pack(tmp_path / "a.zip", {}), tmp_path / "out")


def test_a_folder_is_the_source_of_its_dicom_files_alone(tmp_path: Path) -> None:
    from mhs_ray.slides.cache import SlideSource

    series = tmp_path / "series"
    (series / "deep").mkdir(parents=True)
    for name in ("b.dcm", "deep/a"):
        (series / name).write_bytes(bytes(128) + b"DICM" + bytes(64))
    (series / "README.txt").write_text("notes")
    (series / "empty").touch()
    assert SlideSource.of_path(series).urls == ((series / "b.dcm").as_uri(), (series / "deep" / "a").as_uri())
    file = tmp_path / "slide.svs"
    assert SlideSource.of_path(file).urls == (file.as_uri(),)
