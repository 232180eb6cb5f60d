"""An engine and a registry for images that are on this machine already: nothing is pushed, nothing is pulled."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from mhs_ray import registry
from mhs_ray.domain.errors import NotFoundError, RegistryError
from mhs_ray.domain.models import ImageRef
from mhs_ray.engines.build import image_tools
from mhs_ray.local.archive import SavedImage
from mhs_ray.platform.keys import write_private
from mhs_ray.ports import (
    Admission,
    ContainerEngine,
    ContainerSpec,
    ContainerStatus,
    EngineInfo,
    EngineStorage,
    OnOutput,
    PushAccess,
    RegistryCredential,
)
from mhs_ray.registry.admission import AdmissionLimits, admit
from mhs_ray.registry.scanner import Scanner

_REPOSITORY: Final = ("localhost", "on-this-machine")


class HereEngine(ContainerEngine):
    """`engine` with images by their id: what a job's order names by digest is looked up on this machine."""

    def __init__(self, engine: ContainerEngine) -> None:
        self._engine, self.name = engine, engine.name

    def info(self) -> EngineInfo:
        """See `ContainerEngine.info`."""
        return self._engine.info()

    def pull(
        self, image: ImageRef, credential: RegistryCredential | None, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Do nothing: the image was looked at here before the job was made."""

    def run(self, spec: ContainerSpec, on_output: OnOutput, on_started: Callable[[ContainerStatus], None]) -> None:
        """See `ContainerEngine.run`."""
        image = spec.image.digest if isinstance(spec.image, ImageRef) else spec.image
        self._engine.run(replace(spec, image=image), on_output, on_started)

    def inspect(self, name: str) -> ContainerStatus | None:
        """See `ContainerEngine.inspect`."""
        return self._engine.inspect(name)

    def stop(self, name: str, grace_s: float) -> None:
        """See `ContainerEngine.stop`."""
        self._engine.stop(name, grace_s)

    def remove(self, name: str) -> None:
        """See `ContainerEngine.remove`."""
        self._engine.remove(name)

    def containers(self, label: str) -> list[ContainerStatus]:
        """See `ContainerEngine.containers`."""
        return self._engine.containers(label)

    def storage(self) -> EngineStorage:
        """See `ContainerEngine.storage`."""
        return self._engine.storage()

    def remove_image(self, image: ImageRef) -> bool:
        """Do nothing: it is a person's own."""
        return False


class HereRegistry:
    """An `ImageRegistry` of the images of this machine's engine; an image's id stands for its digest.

    folder: remembers what was admitted, since looking at a large image takes a while. scanner: the operator's own.
    """

    def __init__(
        self, engine: ContainerEngine, folder: Path, limits: AdmissionLimits, scanner: Scanner | None = None
    ) -> None:
        self._tools, self._name, self._folder = image_tools(engine), engine.name, folder
        self._limits, self._scanner = limits, scanner

    def find(self, image: str) -> str:
        """Return the id of a tag or id. Raises NotFoundError."""
        found = self._tools.image_id(image)
        if found is None:
            raise NotFoundError("image", f"{image} in {self._name}; build it first: {self._name} build -t {image} .")
        return found

    def admit(self, image_id: int, digest: str) -> Admission:
        """Look at an image as the platform does after a push. Raises AdmissionError."""
        facts = (digest, asdict(self._limits), self._scanner and self._scanner.command, _rules())
        known = self._folder / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.json"
        try:
            return Admission(**json.loads(known.read_text()))
        except (OSError, ValueError, TypeError):
            pass
        found = self._look(digest)
        write_private(known, json.dumps(asdict(found)).encode())
        return found

    def _look(self, digest: str) -> Admission:
        self._folder.mkdir(parents=True, exist_ok=True)
        # Layers are unpacked here: whether they are small enough once packed is asked apart.
        limits = replace(self._limits, compressed=max(self._limits.uncompressed, self._limits.compressed))
        with tempfile.TemporaryDirectory(prefix="image-", dir=self._folder) as folder:
            tar = Path(folder, "image.tar")
            self._tools.save(digest, tar)
            with SavedImage(tar) as image:
                image.check_packed(self._limits)
                found = admit(image, image.digest, limits, self._scanner)
        return replace(found, digest=digest)

    def promote(self, image_id: int, digest: str, number: int) -> ImageRef:
        """Return the name by which `HereEngine` finds the image."""
        return ImageRef(*_REPOSITORY, digest)

    def pull_credential(self, image: ImageRef) -> RegistryCredential:
        """Return nothing of worth: nothing is pulled."""
        return RegistryCredential("nobody", "")

    def pushed(self, image_id: int) -> str | None:
        """Return None: nothing is pushed here."""

    def push_access(self, image_id: int, company_id: int, expires_at: datetime) -> PushAccess:
        """Raise: there is nowhere to push to."""
        raise RegistryError("images of this machine are used as they are; there is nothing to push to")

    def remove(self, image_id: int) -> None:
        """Leave the image alone: it is the user's own."""


@functools.cache
def _rules() -> str:
    """Return a hash of the code that looks at images: a new rule is asked of known images too."""
    sources = sorted(Path(registry.__path__[0]).glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
