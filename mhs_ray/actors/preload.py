"""Imported by every Ray worker as it starts (see `warm`): brings in what an attempt needs, begins to open the node."""

import threading

import mhs_ray.actors.attempt
from mhs_ray.actors.node import open_quietly

threading.Thread(target=open_quietly, name="open-node", daemon=True).start()

__all__ = ["mhs_ray"]
