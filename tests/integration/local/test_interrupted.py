"""A trial that is ended from outside leaves nothing; one that is killed is cleaned up by the next."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mhs_ray.cli.trial import Here
from mhs_ray.domain.sections import JobSettings
from mhs_ray.domain.settings import Settings
from mhs_ray.engines.podman import PodmanEngine
from mhs_ray.local.stand import Stand
from mhs_ray.sandbox.scratch import mounts_below
from tests.engines_fixtures import _unmount_below
from tests.integration.local.conftest import LAB, PRELUDE

pytestmark = pytest.mark.engine
PROJECT = Path(__file__).resolve().parents[3]
_CHILD = """
import sys
from pathlib import Path
from mhs_ray.cli.signals import ended_by_signals
from mhs_ray.domain.env import EnvVar
from mhs_ray.domain.sections import JobSettings
from mhs_ray.domain.settings import Settings
from mhs_ray.engines.podman import PodmanEngine
from mhs_ray.local.stand import Stand, Trial
home, slide, image, program, *args = sys.argv[1:]
engine = PodmanEngine(args, folder=Path(home).parent / "engine")
settings = Settings(home=home, jobs=JobSettings(scratch="64MiB", stop_grace="PT1S"))
with ended_by_signals(), Stand(settings, engine, echo=lambda line: print(line, flush=True)) as stand:
    stand.run(Trial(image, slide, [EnvVar("PROGRAM", program)]))
"""


@pytest.fixture
def home(here: Here) -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="mi-", dir="/tmp"))
    made.chmod(0o711)
    yield made / "home"
    _unmount_below(made)
    shutil.rmtree(made, ignore_errors=True)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["ended", "killed"])
def test_nothing_is_left_of_a_trial_that_did_not_end_by_itself(
    how: signal.Signals, podman_engine: PodmanEngine, home: Path, slide: Path
) -> None:
    program = PRELUDE + "print('running'); sys.stdout.flush(); time.sleep(120)"
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(home), str(slide), LAB, program, *podman_engine.args],
        env={**os.environ, "PYTHONPATH": str(PROJECT)}, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert "running\n" in iter(child.stdout.readline, "")
    own = (next((home / "local" / "runs").iterdir()) / "keys" / "platform").read_text().strip()

    def left() -> list[str]:
        return [c.name for c in podman_engine.containers(f"mhs.platform={own}")]

    assert left()
    child.send_signal(how)
    child.wait(60)
    if how is signal.SIGKILL:
        assert left()
        settings = Settings(home=home, jobs=JobSettings(scratch="64MiB"))
        with Stand(settings, podman_engine):
            pass
    deadline = time.monotonic() + 10
    while left() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left() == []
    assert list((home / "local" / "runs").iterdir()) == []
    assert mounts_below(home) == []
