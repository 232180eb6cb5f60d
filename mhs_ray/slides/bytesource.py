"""Bytes of a slide by offset and length, wherever they lie."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from mhs_ray.domain.errors import SlideError

Range = tuple[int, int]
"""(offset, length) in bytes."""


class ByteSource(Protocol):
    """Random access to one file's bytes. Safe to use from several threads."""

    @property
    def name(self) -> str:
        """What messages call it; never with a URL's query."""
        ...

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes. Raises SlideError: ``truncated`` beyond the end, or why they cannot be had."""
        ...

    @property
    def is_far(self) -> bool:
        """Whether `prefetch` is worth the trouble."""
        ...

    def prefetch(self, ranges: Sequence[Range]) -> None:
        """Begin to bring these bytes near, and return at once; `read` waits for what is under way."""
        ...

    def close(self) -> None:
        """Give back files and connections."""
        ...


class LocalFile:
    """See ByteSource. Bytes are read, not mapped: a file that shrinks is an error then, and not a SIGBUS."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SlideError("not-a-slide", f"{path.name} cannot be opened: {error.strerror}") from None
        self._size = os.fstat(self._file).st_size

    @property
    def name(self) -> str:
        """See ByteSource."""
        return self._name

    @property
    def size(self) -> int:
        """See ByteSource."""
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        """See ByteSource."""
        if offset >= 0 and offset + length <= self._size:
            data = os.pread(self._file, length, offset)
            if len(data) == length:
                return data
        raise beyond(self._name, offset, length, self._size)

    @property
    def is_far(self) -> bool:
        """See ByteSource."""
        return False

    def prefetch(self, ranges: Sequence[Range]) -> None:
        """The page cache reads ahead by itself."""

    def close(self) -> None:
        """See ByteSource."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def beyond(name: str, offset: int, length: int, size: int) -> SlideError:
    """Return the error for bytes that a file does not have."""
    return SlideError(
        "truncated",
        f"{name} is cut off or damaged: {length} bytes at byte {offset} are needed, but it ends at byte {size}; "
        "upload it again",
    )
