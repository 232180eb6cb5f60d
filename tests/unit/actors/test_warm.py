"""What an upgrade does to workers that wait with the old code."""

from __future__ import annotations

import subprocess
import sys

# The shell stands in for a raylet: its children are a worker that waits, one at work, and one that ends the idle ones.
_RAYLET = """
(exec -a 'ray::IDLE' sleep 60) & idle=$!
(exec -a 'ray::Attempt.run' sleep 60) & busy=$!
"$1" -c 'from mhs_ray.actors.warm import end_idle_workers; print(end_idle_workers())'
wait $idle; echo "idle $?"
kill -0 $busy && echo 'busy lives'
kill $busy
"""


def test_only_a_nodes_own_workers_that_wait_are_ended() -> None:
    other = subprocess.Popen(["bash", "-c", "exec -a 'ray::IDLE' sleep 60"])  # of another raylet
    try:
        done = subprocess.run(
            ["bash", "-c", _RAYLET, "raylet", sys.executable], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout.splitlines()[:3] == ["1", "idle 143", "busy lives"], done
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
