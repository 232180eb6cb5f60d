"""Run every probe, then stay: leave a process behind, ignore TERM, and see whether that helps."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from mhs_ray.sandbox.audit.inside import common, files, kernel, limits, network

given = json.loads(os.environ["MHS_PROBE"])
for probes in (kernel.PROBES, files.PROBES, network.PROBES, limits.PROBES):
    common.run(probes, given)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
common.tell({"done": True})
time.sleep(120)
sys.exit(3)
