"""Opens listening sockets in another process's network namespace; run as a program where threads cannot enter it.

Standard library only, so that it starts in milliseconds as ``python -I _netns_helper.py FD NET PORT…``: it joins the
user namespace that owns the network namespace (which only a process with one thread may do) and passes the sockets
back over the Unix socket FD.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Sequence

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
_NS_GET_USERNS = 0xB701  # linux/nsfs.h
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def setns(fd: int, kind: int) -> None:
    """Move the calling thread into the namespace behind `fd`. Python has os.setns from 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, kind) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def open_here(ports: Sequence[int], backlog: int = 128) -> list[socket.socket]:
    """Return a listening socket on 127.0.0.1 for each port, in the calling thread's network namespace."""
    opened: list[socket.socket] = []
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            request = struct.pack("16sh14x", b"lo", 0)
            flags = struct.unpack_from("h", fcntl.ioctl(probe, _SIOCGIFFLAGS, request), 16)[0]
            if not flags & _IFF_UP:
                fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))
        for port in ports:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            opened.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(backlog)
            listener.setblocking(False)
    except BaseException:
        for listener in opened:
            listener.close()
        raise
    return opened


def open_net(file: str) -> int:
    """Return a descriptor of the network namespace behind `file`; refuses our own: its ports are the node's."""
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    if os.fstat(fd).st_ino == os.stat("/proc/self/ns/net").st_ino:  # noqa: PTH116  (a magic link, not a path)
        os.close(fd)
        raise RuntimeError("it is no network namespace of its own but the node's")
    return fd


def main(arguments: Sequence[str]) -> None:
    """Join the namespace behind NET, open the ports, send them over FD; on failure send the errno's text instead."""
    channel = socket.socket(fileno=int(arguments[0]))
    try:
        net = open_net(arguments[1])
        owner = fcntl.ioctl(net, _NS_GET_USERNS)
        if os.fstat(owner).st_ino != os.stat("/proc/self/ns/user").st_ino:  # noqa: PTH116
            setns(owner, CLONE_NEWUSER)
        setns(net, CLONE_NEWNET)
        sockets = open_here([int(port) for port in arguments[2:]])
    except (OSError, RuntimeError) as e:
        channel.sendall(str(e).encode())
    else:
        socket.send_fds(channel, [b"\0"], [s.fileno() for s in sockets])


if __name__ == "__main__":
    main(sys.argv[1:])
