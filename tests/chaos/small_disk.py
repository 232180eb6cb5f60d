"""A disk for blobs that is small enough to be filled, and what must follow from that."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from tests.chaos.chaos import Chaos

SIZE_MIB = 128
MIN_FREE = "4MiB"  # intake stops at twice that
_KNOWN_S = 1.5  # an API replica that has just found room takes work for a second without another look
_ANSWER_S = 60.0
_numbers = itertools.count(900_000)


class SmallDisk:
    """Mounted at `folder`; who made the folder unmounts it too."""

    def __init__(self, folder: Path) -> None:
        self._filling = folder / "filling"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m,mode=0711", "mhs-chaos", str(folder)]
        subprocess.run(command, check=True, capture_output=True, text=True)

    def fill(self) -> None:
        """Leave no room at all, not for one byte."""
        with self._filling.open("wb", buffering=0) as file:
            for size in (1 << 20, 4096):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> int:
        """Return how many blocks are left."""
        return os.statvfs(self._filling).f_bavail

    def empty(self) -> None:
        """Give the room back."""
        self._filling.unlink(missing_ok=True)


def fill_disk(chaos: Chaos, disk: SmallDisk) -> bool:
    """Fill the disk while jobs run: new work is refused for now, and taken once there is room again."""
    number = next(_numbers)
    body = chaos.body("post", number)
    disk.fill()
    try:
        time.sleep(_KNOWN_S)
        refusal = _ask(chaos, body)
        assert refusal.status_code == 507, f"a full disk took work: {refusal.status_code} {refusal.text[:200]}"
        wait = refusal.headers.get("retry-after", "")
        assert wait.isdigit(), f"507 does not say when to come back: {dict(refusal.headers)}"
        assert disk.free() == 0, "the disk did not stay full"
        time.sleep(chaos.rng.uniform(3, 6))
    finally:
        disk.empty()
    answer = chaos.call("POST", "/webhook", body)
    assert answer.status_code in (200, 201), f"with room again: {answer.status_code} {answer.text[:500]}"
    chaos.accept(body, "post", answer)
    # 200 would say that the refused request had left something behind.
    assert answer.status_code == 201, f"the refused request was stored: {answer.text[:200]}"
    return True


def _ask(chaos: Chaos, body: dict[str, object]) -> httpx.Response:
    """Return the first answer that is not the doing of another fault."""
    deadline = time.monotonic() + _ANSWER_S
    while True:
        try:
            answer = chaos.platform.api.post("/webhook", json=body, timeout=20)
            if answer.status_code == 507:
                chaos.refused += 1
            if answer.status_code < 500 or answer.status_code == 507:
                if answer.status_code < 300:
                    chaos.accept(body, "post", answer)
                return answer
            why = f"{answer.status_code} {answer.text[:100]}"
        except httpx.HTTPError as error:
            why = type(error).__name__
        assert time.monotonic() < deadline, f"nobody answers: {why}"
        time.sleep(0.3)
