"""The log of an attempt: every line, in order, without secrets, whatever comes."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mhs_ray.attempt.logbook import LogLine, LogWriter, log_prefix, read_log
from mhs_ray.domain.errors import BlobError
from mhs_ray.ports import BlobInfo
from mhs_ray.store.blobs.local import LocalBlobs, LocalLimits


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path, "http://127.0.0.1:1", b"k" * 32, LocalLimits(min_free_bytes=0))


def _log(blobs: LocalBlobs, *pieces: bytes | tuple[str, bytes], **options: Any) -> list[LogLine]:
    """Write `pieces` of output, (stream, bytes) or bytes of stdout, and read the log back."""
    writer = LogWriter(blobs, 7, 1, **options)
    for piece in pieces:
        stream, data = ("stdout", piece) if isinstance(piece, bytes) else piece
        writer.output(stream, data)  # type: ignore[arg-type]
    writer.close()
    return list(read_log(blobs, 7, 1))


def _texts(lines: list[LogLine]) -> list[str]:
    return [line.text for line in lines]


def test_every_line_is_kept_in_order_numbered_and_timed(blobs: LocalBlobs) -> None:
    pieces = [b"".join(f"line {i}\n".encode() for i in range(j, j + 7)) for j in range(0, 21_000, 7)]
    lines = _log(blobs, *pieces)
    assert _texts(lines) == [f"line {i}" for i in range(21_000)]
    assert [line.number for line in lines] == list(range(21_000))
    assert [line.at for line in lines] == sorted(line.at for line in lines)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line.at) for line in lines)
    assert len(list(blobs.list(log_prefix(7, 1)))) > 1, "it was shipped in pieces"


def test_lines_that_come_in_crumbs_are_put_together_per_stream(blobs: LocalBlobs) -> None:
    lines = _log(blobs, b"he", ("stderr", b"wa"), b"ll", ("stderr", b"rn\n"), b"o\nlast", ("stderr", b"tail"))
    assert [(line.source, line.text) for line in lines] == [
        ("stderr", "warn"), ("stdout", "hello"), ("stdout", "last"), ("stderr", "tail"),
    ]  # fmt: skip


def test_what_the_platform_says_stands_between_the_lines(blobs: LocalBlobs) -> None:
    writer = LogWriter(blobs, 7, 1)
    writer.say("pulling")
    writer.output("stdout", b"hi\n")
    writer.say("exited with code 0")
    writer.close()
    lines = list(read_log(blobs, 7, 1))
    assert [(line.source, line.text) for line in lines] == [
        ("platform", "pulling"), ("stdout", "hi"), ("platform", "exited with code 0"),
    ]  # fmt: skip
    assert writer.tail == ["hi"], "the failure card shows the container's words only"


@pytest.mark.parametrize(
    ("pieces", "texts"),
    [
        ((b"a\n\nb\n",), ["a", "", "b"]),
        ((b"a\r\nb\r\n",), ["a", "b"]),
        ((b"a\r", b"\nb\n"), ["a", "b"]),
        ((b"a\r\r\nb",), ["a", "b"]),
        ((b"\r10%\r20%\r100%\n",), ["10%", "20%", "100%"]),
        ((b"10%\r", b"20%\r", b"done\n"), ["10%", "20%", "done"]),
        ((b"\n", b"\n"), ["", ""]),
        ((b"",), []),
        ((b"\r",), []),
    ],
)
def test_line_ends_of_all_kinds_make_one_line_each(
    blobs: LocalBlobs, pieces: tuple[bytes, ...], texts: list[str]
) -> None:
    assert _texts(_log(blobs, *pieces)) == texts


def test_a_progress_bar_is_seen_before_its_line_ends(blobs: LocalBlobs) -> None:
    writer = LogWriter(blobs, 7, 1)
    writer.output("stderr", b"\r 10%|#   |\r 20%|##  |")
    assert writer.tail == [" 10%|#   |"]
    writer.close()


def test_bytes_that_are_no_text_are_shown_not_lost(blobs: LocalBlobs) -> None:
    raw = b"nul \x00 ansi \x1b[31mred\x1b[0m bell \x07 bad \xff\xfe tab\there \xc2\x85 \xe2\x80\xa8 \xf0\x9f\x94\xac\n"
    (line,) = _log(blobs, raw)
    assert line.text == (
        "nul \\x00 ansi \\x1b[31mred\\x1b[0m bell \\x07 bad \\xff\\xfe tab\there \\x85 \\x2028 \N{MICROSCOPE}"
    )


def test_a_character_split_over_two_pieces_stays_whole(blobs: LocalBlobs) -> None:
    raw = "Mikroskop \N{MICROSCOPE} ä\n".encode()
    for cut in range(len(raw)):
        writer = LogWriter(blobs, 7, cut + 1)
        writer.output("stdout", raw[:cut])
        writer.output("stdout", raw[cut:])
        assert writer.tail == ["Mikroskop \N{MICROSCOPE} ä"]
        writer.close()


def test_a_line_of_fifty_megabytes_is_cut_and_says_by_how_much(blobs: LocalBlobs) -> None:
    block = b"x" * (1 << 20)
    lines = _log(blobs, *([block] * 50), b"\nnext\n", max_line=1000)
    assert _texts(lines) == ["x" * 1000 + f" … [{50 * len(block) - 1000} more bytes in this line]", "next"]


def test_beyond_its_limit_a_log_stops_and_counts_what_is_left_out(blobs: LocalBlobs) -> None:
    writer = LogWriter(blobs, 7, 1, max_bytes=1000)
    for i in range(100):
        writer.output("stdout", b"x" * 30 + f" {i}\n".encode())
    writer.output("stdout", b"s\n")  # would fit, but a log with holes would mislead
    writer.say("the container exited with code 3")
    writer.close()
    lines = list(read_log(blobs, 7, 1))
    kept = [line for line in lines if line.source == "stdout"]
    assert _texts(kept) == ["x" * 30 + f" {i}" for i in range(len(kept))]
    assert 10 < len(kept) < 20
    assert lines[-2].text == "the container exited with code 3"
    assert lines[-1].text.startswith(f"log limit reached: {101 - len(kept)} more lines (")
    assert writer.tail[-1] == "s", "the failure card still has the last words"


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_secret_split_over_two_pieces_is_hidden(blobs: LocalBlobs, cut: int) -> None:
    raw = b"token=S3CRET-token-ABC; ok\n"
    lines = _log(blobs, raw[:cut], raw[cut:], redact=["S3CRET-token-ABC", "S3CRET-token"])
    assert _texts(lines) == ["token=[redacted]; ok"]


@pytest.mark.parametrize("before", range(985, 1003))
def test_a_secret_at_the_cut_of_a_long_line_does_not_stay_in_half(blobs: LocalBlobs, before: int) -> None:
    raw = b"x" * before + b"S3CRET-token-ABC" + b"y" * 100 + b"\n"
    (line,) = _log(blobs, raw, max_line=1000, redact=["S3CRET-token-ABC"])
    assert "S3CRET" not in line.text
    assert line.text.startswith("x" * min(before, 984))


def test_secrets_of_several_lines_unusual_characters_and_later_arrival_are_hidden(blobs: LocalBlobs) -> None:
    echoed: list[str] = []
    writer = LogWriter(blobs, 7, 1, redact=["first-line\nsecond-line", "päss\x1bword", "abc"], echo=echoed.append)
    writer.output("stdout", "first-line\r\nsecond-line\npäss\x1bword\nabc late-s3cret\n".encode())
    writer.redact(["late-s3cret"])
    writer.output("stderr", b"late-s3cret again\n")
    writer.say("fetching https://s.example.com/?late-s3cret")
    writer.close()
    texts = _texts(list(read_log(blobs, 7, 1)))
    assert texts == [
        "[redacted]", "[redacted]", "[redacted]", "abc late-s3cret", "[redacted] again",
        "fetching https://s.example.com/?[redacted]",
    ]  # fmt: skip
    assert echoed == texts
    assert writer.tail == texts[:-1]


def test_the_echo_is_capped_and_says_so(blobs: LocalBlobs) -> None:
    echoed: list[str] = []
    lines = _log(blobs, b"x\n" * 50, echo=echoed.append, echo_lines=10)
    assert len(lines) == 50
    assert echoed == ["x"] * 9 + ["… more lines are in the job's log"]


class Unreliable(LocalBlobs):
    """A store that refuses to take anything while `down`, and once in a while stores and still says no."""

    down = False
    lies = False
    puts = 0

    def put(self, key: str, data: BinaryIO | bytes) -> BlobInfo:
        self.puts += 1
        if self.down:
            if self.lies:
                super().put(key, data)
            raise BlobError("the store is away")
        return super().put(key, data)


@pytest.fixture
def unreliable(tmp_path: Path) -> Unreliable:
    return Unreliable(tmp_path, "http://127.0.0.1:1", b"k" * 32, LocalLimits(min_free_bytes=0))


@pytest.mark.parametrize("lies", [False, True])
def test_no_line_is_lost_or_doubled_while_the_store_is_away(unreliable: Unreliable, lies: bool) -> None:
    writer = LogWriter(unreliable, 7, 1)
    unreliable.down, unreliable.lies = True, lies
    count = 0
    while unreliable.puts < 3:  # it goes on taking output, and goes on trying
        writer.output("stdout", f"line {count} {'x' * 100}\n".encode())
        count += 1
        threading.Event().wait(0.0005)
    unreliable.down = False
    writer.output("stdout", b"end\n")
    writer.close()
    texts = _texts(list(read_log(unreliable, 7, 1)))
    assert texts == [f"line {i} {'x' * 100}" for i in range(count)] + ["end"]


def test_a_store_that_stays_away_is_an_error_at_the_end(
    unreliable: Unreliable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mhs_ray.attempt.logbook._CLOSE_PAUSES", (0.0, 0.0, None))
    writer = LogWriter(unreliable, 7, 1)
    unreliable.down = True
    writer.output("stdout", b"x\n")
    with pytest.raises(BlobError, match="away"):
        writer.close()


def test_lines_are_stored_while_the_container_still_runs(blobs: LocalBlobs) -> None:
    writer = LogWriter(blobs, 7, 1)
    writer.output("stdout", b"live\n")
    for _ in range(1000):
        if lines := list(read_log(blobs, 7, 1)):
            break
        threading.Event().wait(0.01)
    assert _texts(lines) == ["live"]
    writer.close()


def test_reading_starts_at_any_line(blobs: LocalBlobs) -> None:
    written = _log(blobs, *(b"%d " % i + b"x" * 5000 + b"\n" for i in range(300)))
    assert len(list(blobs.list(log_prefix(7, 1)))) > 2
    for start in (0, 1, 51, 52, 53, 150, 298, 299):
        assert list(read_log(blobs, 7, 1, start)) == written[start:]
    assert list(read_log(blobs, 7, 1, 300)) == list(read_log(blobs, 7, 1, 10**12)) == []


def test_attempts_have_logs_of_their_own(blobs: LocalBlobs) -> None:
    for attempt in (1, 2, 11):
        writer = LogWriter(blobs, 7, attempt)
        writer.output("stdout", f"attempt {attempt}\n".encode())
        writer.close()
        writer.close()  # twice is as good as once
    assert _texts(list(read_log(blobs, 7, 1))) == ["attempt 1"]
    assert list(read_log(blobs, 8, 1)) == []


def test_a_writer_that_goes_on_for_another_one_goes_on_counting(blobs: LocalBlobs) -> None:
    _log(blobs, b"a\nb\n")
    assert [(line.number, line.text) for line in _log(blobs, b"c\n", first_line=2)] == [(0, "a"), (1, "b"), (2, "c")]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=30), max_size=12))
def test_however_output_is_cut_the_log_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    whole = b"".join(pieces).replace(b"\r", b"")  # how \r splits depends on what follows it
    pieces = [p.replace(b"\r", b"") for p in pieces]
    logs = []
    for parts in (pieces, [whole]):
        writer = LogWriter(_Nowhere(), 7, 1)  # type: ignore[arg-type]
        for part in parts:
            writer.output("stdout", part)
        writer.close()
        logs.append(writer.tail)
    assert logs[0] == logs[1]
    assert len(logs[0]) == whole.count(b"\n") + (not whole.endswith(b"\n") and bool(whole))


class _Nowhere:
    """Takes everything."""

    def put(self, key: str, data: bytes) -> None:
        """Forget it."""
