"""Read tiles that the platform has decoded: one file, needs Python 3.8 and numpy. Copy it anywhere.

    from mhs_tiles import open_tiles

    with open_tiles() as feed:                     # the socket is at $MHS_TILES_SOCKET
        print(feed.plan["tiles"], feed.plan["mpp"])
        for batch in feed:                         # uint8, (count, height, width, 3); no copy is made
            scores = model(batch.pixels)           # batch.x, batch.y: level-0 pixels of each tile's corner

The pixels of a batch are good until the next one is asked for; copy what you keep (`batch.pixels.copy()`).
Several processes may each open the feed: every batch goes to one of them.
"""

import json
import mmap
import os
import socket
import time

import numpy as np


class TilesError(Exception):
    """There is no feed, or it broke; the message says why."""


class Batch:
    """Some tiles. pixels: uint8 (count, height, width, 3), RGB. x, y: level-0 pixels. mpp: None if unknown."""

    def __init__(self, pixels, message):
        self.pixels = pixels
        self.x = np.array(message["x"], dtype=np.int64)
        self.y = np.array(message["y"], dtype=np.int64)
        self.level, self.mpp = message["level"], message["mpp"]

    def __len__(self):
        return len(self.pixels)


def open_tiles(path=None, wait=60.0):
    """Connect to the feed. path: of its socket. wait: seconds to wait for the socket to be there."""
    path = path or os.environ.get("MHS_TILES_SOCKET")
    if not path:
        raise TilesError(
            "MHS_TILES_SOCKET is not set: give the runnable container the variable MHS_TILES, "
            "for example size=224 mpp=0.5 tissue"
        )
    ends = time.monotonic() + wait
    while True:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            client.connect(path)
            return Feed(client)
        except OSError as error:
            client.close()
            if time.monotonic() > ends:
                raise TilesError("the tile feed at %s does not answer: %s" % (path, error))
            time.sleep(0.1)


class Feed:
    """Iterate over it for batches. plan: tiles, width, height, mpp, level, factor, slide, scaling."""

    def __init__(self, client):
        self._client, self._buffer, self._memory = client, b"", None
        self._client.sendall(b'{"version": 1, "transport": "memory"}\n')
        handles = []
        try:
            hello = self._line(handles)
            if not handles:
                raise TilesError("the tile feed gave no memory")
            self._slot_bytes = hello["slot_bytes"]
            size = hello["slots"] * self._slot_bytes
            self._memory = mmap.mmap(handles[0], size, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            for handle in handles:
                os.close(handle)
        self.plan = hello["plan"]

    def __iter__(self):
        height, width = self.plan["height"], self.plan["width"]
        while True:
            message = self._line()
            if message.get("end"):
                return
            count, start = message["count"], message["slot"] * self._slot_bytes
            pixels = np.frombuffer(self._memory, np.uint8, count * height * width * 3, start)
            try:
                yield Batch(pixels.reshape(count, height, width, 3), message)
            finally:
                self._client.sendall(b'{"free": %d}\n' % message["slot"])

    def close(self):
        self._client.close()
        self._memory = None  # unmapped with the last array that shows it

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _line(self, handles=None):
        while b"\n" not in self._buffer:
            if handles is None:
                more = self._client.recv(1 << 16)
            else:
                more, passed = _receive_handles(self._client)
                handles += passed
            if not more:
                raise TilesError("the tile feed ended early; the job's log may say why")
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        message = json.loads(line)
        if "error" in message:
            raise TilesError(message["error"])
        return message


def _receive_handles(client):
    handles = np.zeros(1, np.int32)
    more, extra, _, _ = client.recvmsg(1 << 16, socket.CMSG_SPACE(handles.nbytes))
    found = []
    for level, kind, data in extra:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found += np.frombuffer(data[: len(data) // 4 * 4], np.int32).tolist()
    return more, found
