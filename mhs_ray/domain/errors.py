"""Every error a person can meet, as one tree.

::

    MhsError
    ├── InvalidInputError       a field of a request is wrong            (422)
    ├── NotFoundError           no such thing, or not yours              (404)
    ├── ConflictError           right request, wrong moment              (409)
    ├── UnauthenticatedError    no credential, or not a good one         (401)
    ├── ForbiddenError          a good credential without the right      (403)
    ├── OverloadedError         come back later                          (503)
    ├── RateLimitedError        one caller asks too often                (429)
    ├── TransitionError         an event that a job's state cannot take
    ├── EngineError             podman or Docker failed
    │   └── ExecError           the image's entrypoint is missing or not executable
    ├── RegistryError           the OCI registry failed or refused
    ├── AdmissionError          an image that must not run here
    ├── BlobError               the blob store failed
    │   ├── BlobNotFoundError   no blob under this key
    │   └── BlobsFullError      quota or disk is full                    (507)
    ├── SlideError              a slide that cannot be opened or read
    │   └── SlideFetchError     a slide whose bytes cannot be had
    └── SandboxError            isolation that cannot be set up on this node
        └── WeakSandboxError    isolation that was seen not to hold on this node

A message says what failed, on what, and what to do. Each class passes *every* constructor fact to
``super().__init__`` so that it survives pickling across Ray (Ray raises ``UnserializableException``
otherwise). No message holds a token, a presigned URL's query or an environment value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class MhsError(Exception):
    """Base of all errors of the platform."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a request: where (a JSON path such as ``$.scans[0].id``) and what."""

    path: str
    message: str


class InvalidInputError(MhsError):
    """A request that cannot be taken as it is; names every fault at once."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(tuple(faults))
        self.faults = tuple(faults)

    def __str__(self) -> str:
        return "; ".join(f"{f.path}: {f.message}" for f in self.faults)

    @classmethod
    def at(cls, path: str, message: str) -> InvalidInputError:
        """One fault at one path."""
        return cls((Fault(path, message),))


class NotFoundError(MhsError):
    """No such thing, or one of another company: the two look the same from outside."""

    def __init__(self, kind: str, key: object) -> None:
        super().__init__(kind, str(key))
        self.kind, self.key = kind, str(key)

    def __str__(self) -> str:
        return f"there is no {self.kind} {self.key}"


class ConflictError(MhsError):
    """A right request at a wrong moment; the message says what stands against it."""


class UnauthenticatedError(MhsError):
    """No credential, or one that is malformed, expired, revoked or foreign."""


class ForbiddenError(MhsError):
    """A good credential that does not give this right."""


class OverloadedError(MhsError):
    """The platform protects what it already accepted; try again after ``retry_after_s``."""

    def __init__(self, message: str, retry_after_s: int = 30) -> None:
        super().__init__(message, retry_after_s)
        self.message, self.retry_after_s = message, retry_after_s

    def __str__(self) -> str:
        return self.message


class RateLimitedError(MhsError):
    """One caller asks more often than it may; its next request is taken in ``retry_after_s``."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message, retry_after_s)
        self.message, self.retry_after_s = message, retry_after_s

    def __str__(self) -> str:
        return self.message


class TransitionError(MhsError):
    """An event that a job in this state cannot take."""

    def __init__(self, state: str, event: str) -> None:
        super().__init__(state, event)
        self.state, self.event = state, event

    def __str__(self) -> str:
        return f"a job that is {self.state} cannot take the event {self.event}"


class EngineError(MhsError):
    """podman or Docker failed to do `operation`; `detail` is its own last word, without secrets."""

    def __init__(self, engine: str, operation: str, detail: str) -> None:
        super().__init__(engine, operation, detail)
        self.engine, self.operation, self.detail = engine, operation, detail

    def __str__(self) -> str:
        return f"{self.engine} could not {self.operation}: {self.detail}"


class ExecError(EngineError):
    """The container's program could not be executed: not found, not executable, or for another platform.

    The image's fault, not the engine's.
    """


class RegistryError(MhsError):
    """The OCI registry failed or refused."""


class AdmissionError(MhsError):
    """An image that must not run here; `mend` tells its owner what to change."""

    def __init__(self, message: str, mend: str) -> None:
        super().__init__(message, mend)
        self.message, self.mend = message, mend

    def __str__(self) -> str:
        return f"{self.message}. {self.mend}"


class BlobError(MhsError):
    """The blob store failed, or has no such key."""


class BlobNotFoundError(BlobError):
    """There is no blob under this key."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"there is no blob {self.key}"


class BlobsFullError(BlobError):
    """The blob store takes nothing more until something is deleted; the message says which limit was met."""

    def __init__(self, message: str, retry_after_s: int = 300) -> None:
        super().__init__(message, retry_after_s)
        self.message, self.retry_after_s = message, retry_after_s

    def __str__(self) -> str:
        return self.message


class SlideError(MhsError):
    """A slide that cannot be opened or read; `reason` is short and stable, e.g. ``not-a-slide``."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason, self.message = reason, message

    def __str__(self) -> str:
        return self.message


class SlideFetchError(SlideError):
    """A slide whose bytes cannot be had. `transient` says whether trying again may help."""

    def __init__(self, reason: str, message: str, transient: bool = False) -> None:
        MhsError.__init__(self, reason, message, transient)
        self.reason, self.message, self.transient = reason, message, transient


class SandboxError(MhsError):
    """Isolation that cannot be set up on this node."""


class WeakSandboxError(SandboxError):
    """A node that does not hold back what its sandbox must; `faults` names the checks of its audit that failed."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(tuple(faults))
        self.faults = tuple(faults)

    def __str__(self) -> str:
        return f"this node's sandbox failed its audit ({', '.join(self.faults)}), so no job is started here"
