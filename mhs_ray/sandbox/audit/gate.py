"""Jobs start only on a node whose sandbox was seen to hold; seen once per boot and version, not once per job."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from filelock import FileLock

from mhs_ray.domain.errors import WeakSandboxError
from mhs_ray.engines.capabilities import private_folder
from mhs_ray.ports import ContainerEngine
from mhs_ray.sandbox.audit.image import probes_hash
from mhs_ray.sandbox.audit.run import Check, audit

log = logging.getLogger(__name__)

_AGAIN_S: Final = 600.0
"""Seconds after which a failed audit is made again: a node may have been mended, or was only too busy."""


class Gate:
    """Lets a job pass or raises; call it before each job.

    allow_weak: let everything pass, unseen. folder: where verdicts are kept; by default one of this user's on this
    machine, so that every platform here shares them. make: does the audit; only a test gives another.
    """

    def __init__(
        self,
        engine: ContainerEngine,
        *,
        allow_weak: bool = False,
        runtime: str | None = None,
        folder: Path | None = None,
        make: Callable[[], list[Check]] | None = None,
    ) -> None:
        self._engine, self._allow_weak, self._runtime = engine, allow_weak, runtime
        self._folder = private_folder(folder)
        self._make = make or (lambda: audit(engine, runtime=runtime))
        self._held = False

    def __call__(self) -> None:
        """Return if jobs may start here. Raises WeakSandboxError; EngineError or SandboxError when nobody can tell."""
        if self._held or self._allow_weak:
            return
        path = self._path()
        faults = _read(path)
        if faults is None:
            with FileLock(path.with_suffix(".lock")):
                faults = _read(path)
                if faults is None:
                    faults = self.remember(self._make())
        if faults:
            raise WeakSandboxError(faults)
        self._held = True

    def remember(self, checks: Sequence[Check]) -> list[str]:
        """Keep the verdict of an audit that was just made; returns the names of what failed."""
        faults = [check.name for check in checks if not check.ok]
        for check in checks:
            if not check.ok:
                log.error("the sandbox of this node does not hold: %s: %s", check.name, check.detail)
        path = self._path()
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_text(json.dumps({"faults": faults, "at": time.time()}))
        part.replace(path)
        return faults

    def _path(self) -> Path:
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        except OSError:
            boot = "?"
        facts = (boot, self._engine.info(), self._runtime, probes_hash())
        return self._folder / f"audit-{hashlib.sha256(repr(facts).encode()).hexdigest()[:24]}.json"


def _read(path: Path) -> list[str] | None:
    """Return the names of failed checks that are kept, None when there is no verdict or it is too old to trust."""
    try:
        kept = json.loads(path.read_text())
        faults, at = [str(name) for name in kept["faults"]], float(kept["at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if faults and time.time() - at > _AGAIN_S else faults
