"""Where a fetch may connect to. A slide's URL comes from outside, so it must not reach what only this node can see.

`mhs_ray.slides.transport` puts the policy into force at every connection.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mhs_ray.domain.errors import SlideFetchError
from mhs_ray.domain.redact import redact_url

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NEVER: Final = tuple(
    ipaddress.ip_network(n)
    for n in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "100.100.100.200/32", "168.63.129.16/32", "0.0.0.0/8")
)
"""Cloud metadata and link-local addresses: refused whatever the policy says."""

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class UrlPolicy:
    """Which URLs may be fetched.

    allow_private: loopback and private addresses too (one machine, or a blob store in the cluster's network).
    allow_hosts: ``host`` or ``host:port`` that may be private although others may not (our own blob store).
    deny_hosts: ``host`` or ``host:port`` never connected to.
    file_roots: folders that ``file:`` URLs may name; () for none.
    """

    allow_private: bool = False
    allow_hosts: frozenset[str] = frozenset()
    deny_hosts: frozenset[str] = frozenset()
    file_roots: tuple[Path, ...] = ()

    def check_url(self, url: str) -> None:
        """Refuse, before any connection, a scheme, form or host that is never fetched."""
        shown = redact_url(url)
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise _refused("the slide's URL is malformed") from None
        if parts.scheme == "file":
            self.check_file(url)
            return
        if parts.scheme not in ("http", "https"):
            raise _refused(f"{shown} is no http or https URL")
        if not host:
            raise _refused(f"{shown} names no host")
        if parts.username is not None or parts.password is not None:
            raise _refused(f"{shown} carries a user name or password; give a presigned URL")
        if self._listed(self.deny_hosts, host, port or (443 if parts.scheme == "https" else 80)):
            raise _refused(f"{shown} is on a host that this platform never fetches from")

    def check_file(self, url: str) -> Path:
        """Return the file that a ``file:`` URL names. Raises SlideFetchError unless it is under one of `file_roots`."""
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise _refused("a file: URL cannot name a host")
        path = Path(url2pathname(parts.path)).resolve()
        if not any(path.is_relative_to(root.resolve()) for root in self.file_roots):
            raise _refused(f"{path.name} is not in a folder that slides may be taken from; upload it instead")
        return path

    def addresses(self, host: str, port: int) -> list[Address]:
        """Resolve `host` and return its addresses. Raises SlideFetchError when any of them may not be connected to."""
        if self._listed(self.deny_hosts, host, port):
            raise _refused(f"{host} is a host that this platform never fetches from")
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise SlideFetchError("unreachable", f"the name {host} cannot be resolved ({error})", True) from None
        result: list[Address] = []
        for entry in found:
            address = ipaddress.ip_address(str(entry[4][0]).partition("%")[0])
            if not self.permits(address, host, port):
                raise _refused(
                    f"{host} leads to an address inside this network, which slides are not fetched from; "
                    "an operator can allow the host"
                )
            if address not in result:
                result.append(address)
        return result

    def permits(self, address: Address, host: str, port: int) -> bool:
        """Say whether a connection to `address`, which `host` resolved to, is allowed."""
        for inner in _meanings(address):
            if any(inner in net for net in _NEVER if net.version == inner.version):
                return False
            if inner.is_multicast or inner.is_unspecified:
                return False
            if inner.is_global:
                continue
            if not (self.allow_private or self._listed(self.allow_hosts, host, port)):
                return False
        return True

    @staticmethod
    def _listed(hosts: frozenset[str], host: str, port: int) -> bool:
        bare = host.lower().rstrip(".")
        return bare in hosts or f"{bare}:{port}" in hosts


def _meanings(address: Address) -> list[Address]:
    """The address itself and the IPv4 address that an IPv6 one may stand for."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    inner = address.ipv4_mapped or address.sixtofour
    if inner is None and address in _NAT64:
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if inner is not None:
        return [inner] if address.ipv4_mapped else [inner, address]
    return [address]


def _refused(message: str) -> SlideFetchError:
    return SlideFetchError("refused", message, False)
