"""The template's build step: pip runs only for what the base lacks."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

import mhs_ray.templates

SCRIPT = Path(mhs_ray.templates.__file__).parent / "plain" / "install_requirements.py"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("requests", True), ("requests>=2.0", True), ("Pillow", True), ("openslide-bin", True), ("requests<1", False),
        ("no-such-package-at-all", False), ("git+https://example.org/x.git", False), ("-r other.txt", False),
    ],
)  # fmt: skip
def test_what_is_installed_already_is_known(line: str, expected: bool) -> None:
    assert runpy.run_path(str(SCRIPT))["satisfied"](line) is expected


def test_pip_is_run_for_what_is_missing_and_for_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script: dict[str, Any] = runpy.run_path(str(SCRIPT))
    calls: list[list[str]] = []
    real = script["subprocess"].run
    monkeypatch.setattr(
        script["subprocess"],
        "run",
        lambda command, **more: calls.append(command) if "check" in more else real(command, **more),
    )
    file = tmp_path / "requirements.txt"
    file.write_text("# ours\nrequests  # http\n\nnumpy\n")
    script["main"](str(file))
    assert calls == []
    file.write_text("requests\nno-such-package-at-all==1\n")
    script["main"](str(file))
    assert calls[-1][1:] == ["-m", "pip", "install", "--no-cache-dir", "-r", str(file)]
    assert "Installing no-such-package-at-all==1" in capsys.readouterr().out
