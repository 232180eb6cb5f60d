"""`mhs test`, `compare`, `local-env` and `init --list`: what is wrong is said before anything is built or started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mhs_ray.cli.main import app
from mhs_ray.engines import select


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def asked(*_args: object, **_options: object) -> None:
        raise AssertionError("the engine was asked for")

    monkeypatch.setattr(select, "pick_engine", asked)
    monkeypatch.setenv("MHS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (("test", "--demo-slide"), "IMAGE"),
        (("test", "image", "--build", ".", "--demo-slide"), "IMAGE"),
        (("test", "image"), "--scan"),
        (("test", "image", "--scan", "a", "--demo-slide"), "--scan"),
        (("test", "image", "--demo-slide", "-e", "s3cret-without-a-name"), "--env"),
        (("test", "image", "--demo-slide", "-e", "JWT_TOKEN=x"), "--env[0].name"),
        (("test", "image", "--demo-slide", "--instance-type", "p5"), "--instance-type"),
        (("compare", "a:1", "b:1"), "--scan"),
        (("compare", "container:1", "image:b", "--scan", "1"), "--scan"),
        (("compare", "jobs:1", "jobs:2", "--scan", "1"), "--scan"),
        (("compare", "file:none.json", "file:none.json"), "none.json"),
        (("init",), "DIR"),
    ],
)
def test_wrong_words_are_named_by_their_option(words: tuple[str, ...], path: str) -> None:
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 1, done.output
    problem = json.loads(done.stdout.strip().splitlines()[-1])
    assert [error["path"] for error in problem["errors"]] == [path]
    assert "s3cret" not in done.output


def test_a_slide_or_dockerfile_that_is_not_there_is_said_so() -> None:
    done = CliRunner().invoke(app, ["test", "image", "--scan", "no-such.svs", "--json"])
    assert (done.exit_code, json.loads(done.stdout)["type"]) == (1, "/problems/not-found")


def test_the_templates_are_listed() -> None:
    done = CliRunner().invoke(app, ["init", "--list", "--json"])
    assert [row["template"] for row in json.loads(done.stdout)] == ["plain", "tiles", "warm", "torch", "dicom"]
