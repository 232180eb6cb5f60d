"""An operator's own scanner (trivy, clamscan …) on an image before it is admitted."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mhs_ray.domain.errors import AdmissionError, RegistryError
from mhs_ray.registry.client import Manifest

LAYOUT: Final = "{layout}"


@dataclass(frozen=True, slots=True)
class Scanner:
    """A command whose non-zero exit blocks an image; its last line of output is what the image's owner reads.

    command: words; ``{layout}`` stands for a folder in OCI image layout, added as last word where no word has it.
    folder: where the layout is written for the time of the check; needs room for the largest image.
    """

    command: tuple[str, ...]
    folder: Path | None = None
    timeout_s: float = 1800

    def scan(self, layout: Path) -> None:
        """Run the command. Raises AdmissionError when it objects, RegistryError when it cannot do its work."""
        words = [word.replace(LAYOUT, str(layout)) for word in self.command]
        if not any(LAYOUT in word for word in self.command):
            words.append(str(layout))
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                timeout=self.timeout_s, check=False,
            )  # fmt: skip
        except FileNotFoundError:
            raise RegistryError(f"the image scanner {words[0]!r} is not installed; install it or unset it") from None
        except subprocess.TimeoutExpired:
            raise RegistryError(f"the image scanner {words[0]!r} took longer than {self.timeout_s:g} s") from None
        if done.returncode:
            lines = done.stdout.decode(errors="replace").strip().splitlines()
            last = lines[-1].strip()[:400] if lines else f"it ended with code {done.returncode} and said nothing"
            raise AdmissionError(f"the image scanner refused it: {last}", "Mend that and push it again")


def write_layout(folder: Path, manifest: Manifest, blobs: Sequence[str]) -> None:
    """Complete an OCI image layout whose `blobs` (hex digests) lie in ``blobs/sha256`` already."""
    missing = [name for name in blobs if not (folder / "blobs/sha256" / name).exists()]
    if missing:
        raise RegistryError(f"the layout for the scanner lacks {len(missing)} blobs")
    (folder / "blobs/sha256" / manifest.digest.partition(":")[2]).write_bytes(manifest.body)
    descriptor = {"mediaType": manifest.media_type, "digest": manifest.digest, "size": len(manifest.body)}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
