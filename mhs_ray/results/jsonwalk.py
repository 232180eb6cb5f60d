"""Reading JSON one value at a time, so that a body of a million features never stands in memory as objects.

The standard library's C scanner reads each value; only the few levels above the features are walked in Python.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from json.scanner import make_scanner
from typing import Any, Final, NoReturn, cast

from mhs_ray.domain.errors import Fault, InvalidInputError

MAX_DEPTH: Final = 100
"""Arrays and objects inside each other. Real results stay under 15; deeper ones only serve to break readers."""

MAX_FAULTS: Final = 100
"""Faults listed of one request; the rest is counted."""

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_scan_once: Final = make_scanner(cast(Any, json.JSONDecoder()))
# NaN and Infinity pass there, so that `flaw` can name their place.
_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, check_circular=False)


class Faults:
    """Collects what is wrong with one request, up to MAX_FAULTS."""

    def __init__(self) -> None:
        self._listed: list[Fault] = []
        self.count = 0

    def add(self, path: str, message: str) -> None:
        """Note one fault."""
        self.count += 1
        if len(self._listed) < MAX_FAULTS:
            self._listed.append(Fault(path, message))

    @property
    def listed(self) -> tuple[Fault, ...]:
        """The faults noted so far, up to MAX_FAULTS."""
        return tuple(self._listed)

    def check(self, value: object, path: str) -> None:
        """Note a number or a depth in `value` that JSON or we do not take."""
        found = flaw(value)
        if found:
            self.add(path + found[0], found[1])

    def raise_any(self) -> None:
        """Raise InvalidInputError if there is any fault."""
        if self.count > len(self._listed):
            raise InvalidInputError([*self._listed, Fault("$", f"and {self.count - len(self._listed)} more faults")])
        if self._listed:
            raise InvalidInputError(self._listed)


def step(key: str | int) -> str:
    """Return one step of a JSON path: ``[3]``, ``.name`` or ``["two words"]``; a long key is cut."""
    if isinstance(key, int):
        return f"[{key}]"
    if _NAME.fullmatch(key) and len(key) <= 80:
        return f".{key}"
    return f"[{json.dumps(key if len(key) <= 80 else key[:80] + '…', ensure_ascii=True)}]"


def canonical(value: object) -> bytes:
    """Return JSON that does not depend on key order or white space. `value` must have passed `flaw`."""
    return _CANONICAL.encode(value).encode()


def flaw(value: object, depth: int = MAX_DEPTH) -> tuple[str, str] | None:
    """Return where (relative path) and what is the first thing in parsed JSON that cannot be kept, or None."""
    steps: Iterator[tuple[str | int, Any]]
    if type(value) is float:
        if math.isfinite(value):
            return None
        return "", f"{json.dumps(value)} is no JSON number; send a finite number, null, or leave the key out"
    if type(value) is dict:
        steps = iter(value.items())
    elif type(value) is list:
        steps = enumerate(value)
    else:
        return None
    if not depth:
        return "", f"is nested more than {MAX_DEPTH} levels deep; flatten it"
    for key, item in steps:
        if type(item) in _CAN_BE_FLAWED:
            found = flaw(item, depth - 1)
            if found:
                return step(key) + found[0], found[1]
    return None


_CAN_BE_FLAWED: Final = frozenset({float, dict, list})


def kind(value: object) -> str:
    """Return what a JSON value is, for messages: ``a string``, ``null``, …"""
    if value is None:
        return "null"
    names: Mapping[type, str] = {
        bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array", dict: "an object",
    }  # fmt: skip
    return names.get(type(value), "an object")


def decode(body: bytes) -> str:
    """Return the text of `body`. Raises InvalidInputError unless it is UTF-8."""
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise InvalidInputError.at("$", f"is not UTF-8 (byte {e.start}); encode the JSON as UTF-8") from None


class Cursor:
    """A place in a JSON text. Whoever iterates over `members` or `items` reads each value before the next step."""

    __slots__ = ("pos", "text")

    def __init__(self, text: str, pos: int = 0) -> None:
        self.text, self.pos = text, pos

    def peek(self) -> str:
        """Skip white space and return the next character, "" at the end."""
        match = _SPACE.match(self.text, self.pos)
        self.pos = match.end() if match else self.pos
        return self.text[self.pos : self.pos + 1]

    def value(self) -> Any:
        """Read one whole value."""
        self.peek()
        try:
            value, self.pos = _scan_once(self.text, self.pos)
        except StopIteration as e:
            self._fail("a value is missing or malformed", e.value)
        except json.JSONDecodeError as e:
            self._fail(e.msg, e.pos)
        except RecursionError:
            self._fail(f"it is nested more than {MAX_DEPTH} levels deep", self.pos)
        except ValueError:  # Python's limit on the digits of an integer
            self._fail("a number has more digits than can be read", self.pos)
        return value

    def members(self) -> Iterator[str]:
        """Yield the keys of the object that starts here."""
        self._take("{")
        if self.peek() == "}":
            self.pos += 1
            return
        while True:
            if self.peek() != '"':
                self._fail("a key in double quotes is missing", self.pos)
            key: str = self.value()
            self._take(":")
            yield key
            if self.peek() != ",":
                return self._take("}")
            self.pos += 1

    def items(self) -> Iterator[int]:
        """Yield the indices of the array that starts here."""
        self._take("[")
        if self.peek() == "]":
            self.pos += 1
            return
        i = 0
        while True:
            yield i
            i += 1
            if self.peek() != ",":
                return self._take("]")
            self.pos += 1

    def end(self) -> None:
        """Make sure that nothing follows."""
        if self.peek():
            self._fail("there is something after its end", self.pos)

    def _take(self, char: str) -> None:
        if self.peek() != char:
            self._fail(f"{char!r} is missing", self.pos)
        self.pos += 1

    def _fail(self, message: str, pos: int) -> NoReturn:
        line = self.text.count("\n", 0, pos) + 1
        column = pos - self.text.rfind("\n", 0, pos)
        raise InvalidInputError.at("$", f"is not valid JSON: {message} (line {line}, column {column})") from None
