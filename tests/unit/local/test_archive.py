"""Saved images as admission reads them, and what only a push would show."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from mhs_ray.domain.errors import AdmissionError, RegistryError
from mhs_ray.local.archive import SavedImage
from mhs_ray.registry.admission import AdmissionLimits, admit

MIB = 1 << 20


def layer_of(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o4755 if name == "sudo" else 0o644
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def saved(folder: Path, *layers: bytes, twin: bool = False, pack: bool = False, architecture: str = "amd64") -> Path:
    """Write what `docker save` writes; twin: the last layer is a link to the first, as for equal layers."""
    every = [*layers, layers[0]] if twin else list(layers)
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": ["/run"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(raw).hexdigest() for raw in every]},
    }
    names = [f"{i}/layer.tar" for i in range(len(every))]
    body = json.dumps(config).encode()
    path = folder / "image.tar"
    with tarfile.open(path, "w") as tar:

        def add(name: str, content: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))

        for name, raw in zip(names, layers, strict=False):
            add(name, gzip.compress(raw) if pack else raw)
        if twin:
            link = tarfile.TarInfo(names[-1])
            link.type, link.linkname = tarfile.SYMTYPE, "../0/layer.tar"
            tar.addfile(link)
        add("c.json", body)
        add("manifest.json", json.dumps([{"Config": "c.json", "RepoTags": None, "Layers": names}]).encode())
    return path


@pytest.mark.parametrize(("twin", "pack"), [(False, False), (True, False), (False, True)])
def test_a_saved_image_is_admitted_like_a_pushed_one(tmp_path: Path, twin: bool, pack: bool) -> None:
    layers = (layer_of(run=b"#!/bin/sh\n"), layer_of(sudo=b"x"))
    with SavedImage(saved(tmp_path, *layers, twin=twin, pack=pack)) as image:
        image.check_packed(AdmissionLimits())
        found = admit(image, image.digest, AdmissionLimits())
    assert found.details["entrypoint"] == ["/run"]
    assert found.details["setuid_files"] == ["sudo"]
    assert len(found.details["layers"]) == 2 + twin


def test_what_a_push_would_be_refused_for_is_refused(tmp_path: Path) -> None:
    with (
        SavedImage(saved(tmp_path, layer_of(run=b"x"), architecture="arm64")) as image,
        pytest.raises(AdmissionError, match="linux/arm64"),
    ):
        admit(image, image.digest, AdmissionLimits())


def test_a_bomb_is_told_by_packing_it(tmp_path: Path) -> None:
    limits = replace(AdmissionLimits(), ratio_from=MIB)
    with SavedImage(saved(tmp_path, layer_of(run=b"x"), layer_of(zeros=bytes(8 * MIB)))) as image:
        with pytest.raises(AdmissionError, match="layer 2 of the image: it unpacks to more than 100 times"):
            image.check_packed(limits)
        image.check_packed(AdmissionLimits())  # too small to matter
    with SavedImage(saved(tmp_path, layer_of(noise=os.urandom(8 * MIB)))) as image:
        image.check_packed(limits)


def test_the_size_that_counts_is_the_packed_one(tmp_path: Path) -> None:
    limits = replace(AdmissionLimits(), compressed=4 * MIB)
    with SavedImage(saved(tmp_path, layer_of(zeros=bytes(8 * MIB)))) as image:
        image.check_packed(limits)
    with (
        SavedImage(saved(tmp_path, layer_of(noise=os.urandom(8 * MIB)))) as image,
        pytest.raises(AdmissionError, match="compressed; at most"),
    ):
        image.check_packed(limits)


def test_a_tar_that_is_no_saved_image_is_said_to_be_none(tmp_path: Path) -> None:
    for content in (b"nothing", layer_of(run=b"x")):
        (tmp_path / "image.tar").write_bytes(content)
        with pytest.raises(RegistryError, match="saved the image in a way"):
            SavedImage(tmp_path / "image.tar")
