from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mhs_ray.domain.errors import SlideError, SlideFetchError
from mhs_ray.slides.cache import CacheLimits, SlideCache, SlideSource
from mhs_ray.slides.fetch import FetchLimits
from mhs_ray.slides.geometry import Level0Point, PixelSize
from mhs_ray.slides.open import open_slide
from mhs_ray.slides.url_guard import UrlPolicy

QUICK = FetchLimits(stall_s=3, connect_s=2, backoff_s=0.01, retries=2)
HERE = UrlPolicy(allow_private=True)
USE = """
import sys
from pathlib import Path
from mhs_ray.slides.cache import SlideCache, SlideSource
from mhs_ray.slides.url_guard import UrlPolicy
cache = SlideCache(Path(sys.argv[1]), policy=UrlPolicy(allow_private=True))
with cache.get(SlideSource((sys.argv[2],))) as slide:
    """


def cache_at(root: Path, **limits: Any) -> SlideCache:
    return SlideCache(root, limits=CacheLimits(**limits), fetch_limits=QUICK, policy=HERE)


def gets(storage: Any, path: str = "/s") -> int:
    """Downloads from the start: neither resumed, nor the one byte that asks whether a copy is good."""
    return sum(1 for asked, span in storage.requests if asked == path and span is None)


def leftovers(root: Path) -> list[Path]:
    return list((root / "tmp").iterdir())


def test_a_slide_is_fetched_once_and_used_again_under_another_signature(
    storage: Any, slide_bytes: bytes, tmp_path: Path
) -> None:
    cache = cache_at(tmp_path)
    storage.put("/s", slide_bytes)
    with cache.get(SlideSource((storage.url("/s", "X-Amz-Signature=one"),))) as first:
        assert not first.was_cached
        assert first.path.read_bytes() == slide_bytes
        assert first.facts.vendor == "aperio"
    with cache.get(SlideSource((storage.url("/s", "X-Amz-Signature=two"),))) as again:
        assert again.was_cached
        assert (again.path, again.facts, again.sha256) == (first.path, first.facts, first.sha256)
    assert gets(storage) == 1
    assert leftovers(tmp_path) == []


def test_a_copy_on_the_node_is_no_right_to_read_it(storage: Any, slide_bytes: bytes, tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    url = storage.put("/s", slide_bytes)
    with cache.get(SlideSource((url,))):
        pass
    storage.answers["/s"] = lambda handler: handler.error(403, "AccessDenied", "Access Denied")
    with pytest.raises(SlideFetchError) as error, cache.get(SlideSource((url,))):
        pass
    assert error.value.reason == "forbidden"


def test_a_named_source_is_not_asked_for_again(storage: Any, slide_bytes: bytes, tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    source = SlideSource((storage.put("/s", slide_bytes),), identity="scans/7/slide@v1")
    for _ in range(2):
        with cache.get(source):
            pass
    assert len(storage.requests) == 1


def test_a_changed_slide_is_fetched_anew_while_the_old_one_is_in_use(
    storage: Any, slide_bytes: bytes, tmp_path: Path
) -> None:
    cache = cache_at(tmp_path)
    source = SlideSource((storage.put("/s", slide_bytes),))
    with cache.get(source) as old:
        storage.put("/s", slide_bytes + b"\0" * 10, '"v2"')
        with cache.get(source) as new:
            assert new.path != old.path
            assert new.size == old.size + 10
            assert old.path.read_bytes() == slide_bytes
        with cache.get(source) as once_more:
            assert once_more.path == new.path
    assert gets(storage) == 2


def test_a_slide_that_fails_its_check_is_not_kept(storage: Any, slide_bytes: bytes, tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    source = SlideSource((storage.put("/s", slide_bytes[: len(slide_bytes) // 2]),))
    for _ in range(2):
        with pytest.raises(SlideError, match="cut off"), cache.get(source):
            pass
    assert gets(storage) == 2
    assert leftovers(tmp_path) == []
    assert cache.used_bytes() == 0
    storage.put("/s", slide_bytes, '"v2"')
    with cache.get(source) as good:
        assert good.facts.width == 1300


def test_threads_that_want_one_slide_share_one_download(storage: Any, slide_bytes: bytes, tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    source = SlideSource((storage.put("/s", slide_bytes),))
    paths: list[Path] = []

    def use() -> None:
        with cache.get(source) as slide:
            paths.append(slide.path)

    threads = [threading.Thread(target=use) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(paths) == 5
    assert len(set(paths)) == 1
    assert gets(storage) == 1


def test_processes_that_want_one_slide_share_one_download(storage: Any, slide_bytes: bytes, tmp_path: Path) -> None:
    url = storage.put("/s", slide_bytes)
    command = [sys.executable, "-c", USE + "print(slide.path)", str(tmp_path), url]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {worker.communicate(timeout=60)[0] for worker in workers}
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert len(paths) == 1
    assert gets(storage) == 1


def test_the_least_recently_used_slide_makes_room_but_none_in_use(
    storage: Any, slide_bytes: bytes, tmp_path: Path
) -> None:
    size = len(slide_bytes)
    cache = cache_at(tmp_path, max_bytes=int(size * 2.5))
    sources = {n: SlideSource((storage.put(f"/{n}", slide_bytes),), identity=n) for n in "abcd"}
    for name in "ab":
        with cache.get(sources[name]) as slide:
            used = slide.path.parent / "meta.json"
        os.utime(used, (1, 1 if name == "a" else 2))
    with cache.get(sources["a"]) as held:  # a is now the more recently used
        with cache.get(sources["c"]):
            assert gets(storage, "/b") == 1
            assert cache.used_bytes() == 2 * size
            with pytest.raises(SlideFetchError, match="in use") as error, cache.get(sources["d"]):
                pass
            assert (error.value.reason, error.value.transient) == ("no-space", True)
        assert held.path.exists()
    with cache.get(sources["b"]):
        pass
    assert gets(storage, "/b") == 2
    assert leftovers(tmp_path) == []


def test_a_slide_larger_than_the_cache_is_refused(storage: Any, slide_bytes: bytes, tmp_path: Path) -> None:
    cache = cache_at(tmp_path, max_bytes=1000)
    with pytest.raises(SlideFetchError) as error, cache.get(SlideSource((storage.put("/s", slide_bytes),))):
        pass
    assert error.value.reason == "too-large"


def test_unused_and_broken_entries_go_at_the_next_start(storage: Any, slide_bytes: bytes, tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    for name in "abc":
        with cache.get(SlideSource((storage.put(f"/{name}", slide_bytes),), identity=name)) as slide:
            folder = slide.path.parent
        if name == "a":
            os.utime(folder / "meta.json", (1, 1))
        if name == "b":
            os.truncate(folder / "slide", 100)
    cache_at(tmp_path)
    assert [e.name.split(".")[0] for e in (tmp_path / "entries").iterdir()] == [SlideSource(("x",), identity="c").key]


def test_after_a_power_loss_a_copy_is_compared_with_what_was_fetched(
    storage: Any, slide_bytes: bytes, tmp_path: Path
) -> None:
    cache = cache_at(tmp_path)
    source = SlideSource((storage.put("/s", slide_bytes),), identity="s")
    for damage in (False, True):
        with cache.get(source) as slide:
            meta = slide.path.parent / "meta.json"
        meta.write_text(json.dumps({**json.loads(meta.read_text()), "boot": "an earlier one"}))
        if damage:
            slide.path.write_bytes(b"\0" * slide.size)
        with cache.get(source) as again:
            assert again.was_cached is not damage
            assert again.path.read_bytes() == slide_bytes
    assert gets(storage) == 2


@pytest.mark.parametrize("damage", ["meta.json", "lease", "facts"])
def test_a_damaged_record_leads_to_a_new_download_and_not_to_a_loop(
    storage: Any, slide_bytes: bytes, tmp_path: Path, damage: str
) -> None:
    cache = cache_at(tmp_path)
    source = SlideSource((storage.put("/s", slide_bytes),), identity="s")
    with cache.get(source) as slide:
        folder = slide.path.parent
    if damage == "facts":
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps({**meta, "facts": {"width": "wide"}}))
    else:
        (folder / damage).unlink()
    with cache.get(source) as again:
        assert not again.was_cached
        assert again.path.read_bytes() == slide_bytes
    assert gets(storage) == 2


def test_a_process_killed_in_mid_download_leaves_nothing_for_long(
    storage: Any, slide_bytes: bytes, tmp_path: Path
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def slowly(handler: Any) -> None:
        handler.begin(slide_bytes, 5000)
        reached.set()
        go_on.wait(10)

    storage.answers["/s"] = slowly
    url = storage.put("/s", slide_bytes)
    child = subprocess.Popen([sys.executable, "-c", USE + "pass", str(tmp_path), url])
    assert reached.wait(20)
    assert len(leftovers(tmp_path)) == 1
    cache_at(tmp_path)  # another process starting takes nothing from a living one
    assert len(leftovers(tmp_path)) == 1
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    go_on.set()
    storage.answers.clear()
    with cache_at(tmp_path).get(SlideSource((url,))) as slide:
        assert slide.path.read_bytes() == slide_bytes
    assert leftovers(tmp_path) == []


def test_a_download_that_is_cancelled_ends_and_the_next_one_begins_anew(
    storage: Any, slide_bytes: bytes, tmp_path: Path
) -> None:
    storage.put("/s", slide_bytes)
    cache, source = cache_at(tmp_path), SlideSource((storage.url("/s"),))
    seen: list[int] = []
    with (
        pytest.raises(SlideFetchError) as error,
        cache.get(source, on_progress=lambda done, _: seen.append(done), cancelled=lambda: bool(seen)),
    ):
        pass
    assert error.value.reason == "cancelled"
    assert seen == [0], "at its next MiB"
    assert leftovers(tmp_path) == []
    with cache.get(source) as slide:
        assert slide.path.read_bytes() == slide_bytes


def test_waiting_for_anothers_download_can_be_cancelled(storage: Any, slide_bytes: bytes, tmp_path: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def slowly(handler: Any) -> None:
        reached.set()
        go_on.wait(10)
        handler.error(404, "NoSuchKey", "gone")

    storage.answers["/s"] = slowly
    cache, source = cache_at(tmp_path), SlideSource((storage.url("/s"),))

    def first() -> None:
        with pytest.raises(SlideFetchError), cache.get(source):
            pass

    thread = threading.Thread(target=first)
    thread.start()
    assert reached.wait(10)
    started = time.monotonic()
    with pytest.raises(SlideFetchError) as error, cache.get(source, cancelled=lambda: True):
        pass
    assert error.value.reason == "cancelled"
    assert time.monotonic() - started < 8
    go_on.set()
    thread.join(10)


def test_a_dicom_series_comes_as_files_or_as_a_zip(storage: Any, dicom: Path, tmp_path: Path) -> None:
    cache = cache_at(tmp_path / "cache")
    packed = tmp_path / "z"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(dicom, "a.dcm")
    files = SlideSource((storage.put("/1", dicom.read_bytes()),) * 1 + (storage.put("/2", b"not DICOM"),))
    zipped = SlideSource((storage.put("/z", packed.read_bytes()),))
    for source in (files, zipped, files, zipped):
        with cache.get(source) as slide, open_slide(slide.path) as reader:
            assert slide.facts.format == "dicom"
            assert reader.read_region(Level0Point(0, 0), PixelSize(50, 50), level=0).std() > 0
            assert len(slide.sha256) == len(source.urls)
    assert gets(storage, "/z") == gets(storage, "/1") == 1


def test_no_file_of_the_cache_holds_a_signature(storage: Any, slide_bytes: bytes, tmp_path: Path) -> None:
    with cache_at(tmp_path).get(SlideSource((storage.put("/s", slide_bytes),))) as slide:
        assert b"SECRET" not in (slide.path.parent / "meta.json").read_bytes()
        assert "SECRET" not in str(slide)
    assert not [p for p in tmp_path.rglob("*") if "SECRET" in p.name]
