"""What one attempt may reach: an exact list of hosts and ports, and the check of the addresses they resolve to."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from mhs_ray.domain.errors import SandboxError

FILES_HOST: Final = "files.mhs.internal"
"""Where a container fetches its slide and puts its debug zip: a name that no public DNS knows."""

RESULTS_PREFIX: Final = "/api/v3/"
"""The only paths of the platform's API that a container has any business with."""

PROXY_PORT: Final = 3128

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST: Final = re.compile(rf"(?=.{{1,253}}$)(?:{_LABEL}\.)*(?![0-9]+$){_LABEL}")  # not an IPv4 address
_AUTHORITY: Final = re.compile(r"([^\s:@/\\\[\]?#]+|\[[0-9a-fA-F:.]+\])(?::([0-9]{1,5}))?")
_CARRIERS: Final = ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")  # NAT64, 6to4, Teredo
_TRANSLATED: Final = tuple(ipaddress.ip_network(network) for network in _CARRIERS)


@dataclass(frozen=True, slots=True)
class LocalRoute:
    """A host whose TLS ends on this node.

    upstream: base URL of the platform's API as this node reaches it; None: the attempt's own file server.
    prefix: what a path must start with to be forwarded.
    """

    host: str
    upstream: str | None
    port: int = 443
    prefix: str = "/"


@dataclass(frozen=True, slots=True)
class DirectRoute:
    """A host outside whose bytes are passed through as they are.

    networks: non-public networks that its name may nevertheless resolve to. tls: False for plain HTTP.
    """

    host: str
    port: int = 443
    tls: bool = True
    networks: tuple[IPNetwork, ...] = ()


Route = LocalRoute | DirectRoute


def normal_host(text: str) -> str | None:
    """Return a DNS name in lower case without its final dot, None for anything that is no DNS name."""
    host = text.lower().removesuffix(".")
    return host if host.isascii() and _HOST.fullmatch(host) else None


def split_authority(text: str, default_port: int | None = None) -> tuple[str, int] | None:
    """Return (host, port) of ``host:port``; None when malformed, with user info, or without any port."""
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        return None
    port = int(match[2]) if match[2] else default_port
    return (match[1].lower(), port) if port is not None and 0 < port < 65536 else None


def split_target(target: str) -> tuple[str, str, str] | None:
    """Return (scheme, authority, path and query) of an absolute request target, None for any other."""
    try:
        parts = urlsplit(target)
    except ValueError:
        return None
    if not parts.scheme or not parts.netloc:
        return None
    return parts.scheme.lower(), parts.netloc, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def results_route(host: str, gateway_url: str) -> LocalRoute:
    """Return the route of ``https://api.{HOST}/api/v3/…`` to the results gateway at `gateway_url`.

    host: HOST of the contract, e.g. ``app.techcyte.com``; a port in it is honoured. Raises SandboxError.
    """
    authority = split_authority(host, default_port=443)
    name = normal_host(authority[0]) if authority else None
    if authority is None or name is None:
        raise SandboxError(f"HOST {host[:80]!r} is no host name; give something like app.techcyte.com")
    parts = urlsplit(gateway_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SandboxError("the gateway's address must be an http or https URL; set the platform's public URL")
    return LocalRoute(f"api.{name}", gateway_url.rstrip("/"), authority[1], RESULTS_PREFIX)


def direct_routes(hosts: Iterable[str]) -> tuple[DirectRoute, ...]:
    """Return routes to ``name`` or ``name:port`` by TLS. Raises SandboxError for what is no DNS name."""
    routes = []
    for text in hosts:
        authority = split_authority(text, default_port=443)
        name = normal_host(authority[0]) if authority else None
        if authority is None or name is None:
            raise SandboxError(f"{text[:80]!r} is no host name; MHS_SANDBOX__DIRECT_HOSTS takes names like example.com")
        routes.append(DirectRoute(name, authority[1]))
    return tuple(dict.fromkeys(routes))


class RouteTable:
    """The exact list of one attempt. Raises SandboxError for a route whose host is no DNS name or stands twice."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._by_target: dict[tuple[str, int], Route] = {}
        for route in self.routes:
            if normal_host(route.host) != route.host:
                raise SandboxError(f"a route needs a lower-case DNS name, not {route.host[:80]!r}")
            if (route.host, route.port) in self._by_target:
                raise SandboxError(f"two routes name {route.host}:{route.port}; keep one")
            if route.port in (80, PROXY_PORT) and (isinstance(route, LocalRoute) or route.tls):
                raise SandboxError(f"port {route.port} cannot serve TLS in a sandbox; use another one for {route.host}")
            self._by_target[route.host, route.port] = route

    def find(self, host: str, port: int) -> Route | None:
        """Return the route of this target, None when it is not on the list."""
        name = normal_host(host)
        return self._by_target.get((name, port)) if name else None

    def find_plain(self, host: str, port: int) -> Route | None:
        """Return the route that takes plain HTTP for this target: a local host on 80 or its port, or a listed one."""
        name = normal_host(host)
        for route in self.routes:
            if isinstance(route, LocalRoute):
                if route.host == name and port in (80, route.port):
                    return route
            elif not route.tls and (route.host, route.port) == (name, port):
                return route
        return None

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every host of the list, once, in order."""
        return tuple(dict.fromkeys(route.host for route in self.routes))

    @property
    def local_hosts(self) -> tuple[str, ...]:
        """The hosts whose TLS ends here."""
        return tuple(dict.fromkeys(r.host for r in self.routes if isinstance(r, LocalRoute)))

    @property
    def tls_ports(self) -> tuple[int, ...]:
        """Ports besides the proxy's on which a client that ignores proxy variables looks for these hosts."""
        return tuple(sorted({r.port for r in self.routes if isinstance(r, LocalRoute) or r.tls}))

    def describe(self) -> str:
        """Return what is allowed, as a sentence for the person who reads the container's log."""
        return "this container may reach only " + ", ".join(f"{r.host}:{r.port}" for r in self.routes)


def address_allowed(address: IPAddress, networks: Iterable[IPNetwork] = ()) -> bool:
    """Whether a listed host may resolve to `address`: a public unicast one, or one of `networks`.

    Addresses that carry another one inside (IPv4-mapped, NAT64, 6to4, Teredo) are judged as what they carry or refused.
    """
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address in network for network in networks):
        return True
    if any(address in network for network in _TRANSLATED):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved
