"""The process of a warm container's host: ``… -m mhs_ray.actors.warm_host FOLDER LOCK``, its order on standard input.

No actor: it outlives the attempts whose actors come and go, and Ray takes its GPU for free while it waits.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from pathlib import Path

from mhs_ray.actors.node import open_node
from mhs_ray.attempt.warm_host import WarmHost
from mhs_ray.attempt.warm_order import ERROR, HOST_SOCKET, WarmOrder
from mhs_ray.domain.errors import MhsError

log = logging.getLogger(__name__)


def main(folder: Path, lock: int) -> int:
    """Serve until the container's life is over. lock: a handle; that it is held says that this process lives."""
    logging.basicConfig(level=logging.WARNING)
    os.set_inheritable(lock, False)  # what is started from here may live longer
    order = WarmOrder.load(sys.stdin.buffer.read())
    node = open_node()
    try:
        WarmHost(order, node, folder).run()
    except Exception as error:
        log.exception("the warm container %s ended", order.name)
        text = str(error) if isinstance(error, MhsError) else f"{type(error).__name__} in its host"
        (folder / ERROR).write_text(text)
        return 1
    finally:
        (folder / HOST_SOCKET).unlink(missing_ok=True)
        if not (folder / ERROR).exists():
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), int(sys.argv[2])))
