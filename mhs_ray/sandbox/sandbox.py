"""Everything around one attempt's container on its node, as one thing that opens and closes.

::

    root/NAME/                   0711: a runtime in a user namespace must get through
      private/  ca.pem sign.key  0700: the attempt's CA and URL key: kept, since a running container trusts them already
      shared/   hosts resolv.conf trust.pem   mounted into the container, read-only
      uploads/  debug            0700: what the container put, out of its own sight
      scratch.ext4, scratch/     its writable places
      net, sys/                  its network namespace and a /sys of that (podman as root)

Our proxy listens inside the network namespace (see `network`). When the process that opened a sandbox dies, opening it
again under the same name finds all this and goes on.
"""

from __future__ import annotations

import logging
import posixpath
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from mhs_ray.domain.errors import EngineError, SandboxError
from mhs_ray.engines import labels
from mhs_ray.engines.pause import PAUSE_COMMAND
from mhs_ray.ports import ContainerEngine, ContainerSpec, EngineInfo, Limits, Mount
from mhs_ray.sandbox.dial import Resolve
from mhs_ray.sandbox.files import FileServer
from mhs_ray.sandbox.http import HttpServer
from mhs_ray.sandbox.local import DEFAULT_MAX_BODY, LocalHosts
from mhs_ray.sandbox.netns import listeners, mount_sys
from mhs_ray.sandbox.network import Network, open_network
from mhs_ray.sandbox.proxy import Proxy, ProxyLimits
from mhs_ray.sandbox.routes import FILES_HOST, PROXY_PORT, DirectRoute, LocalRoute, RouteTable, results_route
from mhs_ray.sandbox.scratch import Scratch, open_scratch, remove_folder, unmount_below
from mhs_ray.sandbox.state import private_folder, private_key, write_shared
from mhs_ray.sandbox.tls import SYSTEM_ROOTS, AttemptCa, trust_bundle

_T = TypeVar("_T")

log = logging.getLogger(__name__)

DEFAULT_DEBUG_BYTES: Final = 2 << 30
TRUST_TARGET: Final = "/etc/mhs/trust.pem"
_TRUST_STORE: Final = re.compile(
    r"/(?!proc/|sys/|dev/|run/|tmp/|var/tmp/|input/|output/|scratch/)[!-~]{1,1000}\.(?:pem|crt)"
)
_MAX_STORES: Final = 32
_PAUSE_LIMITS: Final = Limits(cpus=0.2, memory_bytes=64 << 20, pids=64, shm_bytes=1 << 20, open_files=1024)
TRUST_VARIABLES: Final = (
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "AWS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
)


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What one attempt's sandbox has to be.

    name: of the attempt on this node; a pause container is called ``NAME-net``. labels: job, attempt and platform.
    pause_image: tag or id of an image for `PAUSE_COMMAND`. host: HOST of the contract. gateway_url: base of our API
    as this node reaches it. direct: hosts outside that it may reach as well. ca_bundles: trust stores inside the
    image to cover. scratch_bytes: of all writable places together.
    """

    name: str
    labels: Mapping[str, str]
    pause_image: str
    host: str
    gateway_url: str
    scratch_bytes: int
    direct: Sequence[DirectRoute] = ()
    ca_bundles: Sequence[str] = ()
    max_debug_bytes: int = DEFAULT_DEBUG_BYTES
    max_results_bytes: int = DEFAULT_MAX_BODY
    proxy_limits: ProxyLimits | None = None


class Sandbox:
    """One attempt's surroundings; a context manager. Raises SandboxError or EngineError, and then leaves nothing.

    root: folder on the node for all sandboxes, which every user may pass through (0711).
    on_denied: told of each blocked target once, from another thread.
    """

    def __init__(
        self,
        engine: ContainerEngine,
        spec: SandboxSpec,
        root: Path,
        on_denied: Callable[[str], None],
        resolve: Resolve | None = None,
    ) -> None:
        self._engine, self._spec, self._on_denied, self._resolve = engine, spec, on_denied, resolve
        if "/" in spec.name or spec.name in ("", ".", ".."):
            raise SandboxError(f"{spec.name!r} is no name for a sandbox")
        self._folder = root.resolve() / spec.name
        local = (results_route(spec.host, spec.gateway_url), LocalRoute(FILES_HOST, None))
        # Results always go to our gateway, whatever else is on the list.
        ours = {(route.host, route.port) for route in local}
        self._table = RouteTable([*local, *(r for r in spec.direct if (r.host, r.port) not in ours)])
        self._files: FileServer | None = None
        self._proxy: Proxy | None = None
        self._scratch: Scratch | None = None
        self._sys: Mount | None = None
        self._network: Network | None = None

    @property
    def network(self) -> str:
        """What the model container joins; see `ContainerSpec.network`."""
        return _opened(self._network).joined

    def open(self) -> Self:
        """Set everything up, or take over what an earlier process of this attempt left running."""
        try:
            self._open()
        except OSError as e:
            self._close_quietly()
            raise SandboxError(f"the sandbox below {self._folder} cannot be set up: {e}") from e
        except BaseException:
            self._close_quietly()
            raise
        return self

    def _open(self) -> None:
        self._folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._folder.chmod(0o711)
        private = private_folder(self._folder / "private")
        uploads = private_folder(self._folder / "uploads")
        self._files = FileServer(private_key(private / "sign.key"), uploads, self._spec.max_debug_bytes)
        self._files.accept("debug")
        ca = AttemptCa.open(private, self._table.local_hosts)
        self._write_shared(ca)
        info = self._engine.info()
        self._network = self._open_network(info)  # a pause container starts while the rest is done
        self._scratch = open_scratch(self._folder, self._spec.scratch_bytes, (info.host_uid, info.host_gid))
        limits = self._spec.proxy_limits or ProxyLimits()
        hosts = LocalHosts(self._table, self._files, max_body_bytes=self._spec.max_results_bytes)
        server = HttpServer(hosts, limits.head_s)
        tls = ca.server_context(self._table.local_hosts)
        self._proxy = Proxy(self._table, server, tls, self._on_denied, limits, self._resolve)
        net = self._network.path()
        if info.name == "podman" and info.user_namespace and not info.rootless:
            self._sys = self._own_sys(net)
        self._proxy.start(listeners(net, (PROXY_PORT, 80, *self._table.tls_ports)))

    def _write_shared(self, ca: AttemptCa) -> None:
        shared = self._folder / "shared"
        shared.mkdir(exist_ok=True)
        shared.chmod(0o755)  # whatever the umask
        names = " ".join(("localhost", *self._table.hosts))
        write_shared(shared / "hosts", f"127.0.0.1 {names}\n".encode())
        write_shared(shared / "resolv.conf", b"# no name service: see /etc/hosts\n")
        bundle = shared / "trust.pem"
        if not bundle.exists() or ca.certificate_pem not in bundle.read_bytes():
            write_shared(bundle, trust_bundle(ca))

    def _open_network(self, info: EngineInfo) -> Network:
        pause = ContainerSpec(
            name=f"{self._spec.name}-net",
            image=self._spec.pause_image,
            env={},
            labels={**self._spec.labels, labels.ROLE: labels.ROLE_PAUSE},
            limits=_PAUSE_LIMITS,
            command=PAUSE_COMMAND,
        )
        return open_network(self._engine, info, pause, self._folder / "net")

    def _own_sys(self, net: Path) -> Mount:
        """Return a /sys of the attempt's network; podman would mount the node's (see engines/masks)."""
        folder = self._folder / "sys"
        unmount_below(folder)
        folder.mkdir(mode=0o755, exist_ok=True)
        mount_sys(net, folder)
        return Mount(folder, "/sys")

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """What the model container needs mounted: names, trust (also over the image's own stores), writable places."""
        shared = self._folder / "shared"
        return (
            Mount(shared / "hosts", "/etc/hosts"),
            Mount(shared / "resolv.conf", "/etc/resolv.conf"),
            *(Mount(shared / "trust.pem", target) for target in trust_targets(self._spec.ca_bundles)),
            *_opened(self._scratch).mounts,
            *((self._sys,) if self._sys else ()),
        )

    @property
    def tmpfs(self) -> Mapping[str, int]:
        """Target → bytes of the model container's places in memory."""
        return _opened(self._scratch).tmpfs

    @property
    def env(self) -> Mapping[str, str]:
        """Variables of the model container; they must win over the container's own."""
        proxy = f"http://127.0.0.1:{PROXY_PORT}"
        variables = {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "NO_PROXY": ""}
        variables |= {name.lower(): value for name, value in variables.items()}
        return {**variables, **dict.fromkeys(TRUST_VARIABLES, TRUST_TARGET), "HOME": "/tmp"}  # noqa: S108

    def slide_url(self, path: Path, filename: str, expires_in_s: float, *, name: str = "slide") -> str:
        """Serve the file at `path` to the container; return the signed URL it is reached by.

        name: of the object, ``slide`` or ``slide-zip``. After a takeover give each again; its URLs stay good.
        """
        files = _opened(self._files)
        files.publish(name, path, filename)
        return files.url(name, "GET", time.time() + expires_in_s)

    def debug_url(self, expires_in_s: float, *, name: str = "debug") -> str:
        """Return the signed URL to which the container may PUT its debug zip. name: a plain one, of the object."""
        _opened(self._files).accept(name)
        return _opened(self._files).url(name, "PUT", time.time() + expires_in_s)

    @property
    def debug_file(self) -> Path | None:
        """The debug zip if the container has put one; gone after `close`."""
        return self.uploaded("debug")

    def uploaded(self, name: str) -> Path | None:
        """`debug_file` of another object."""
        return _opened(self._files).uploaded(name)

    def withdraw(self, name: str) -> None:
        """Have every URL of an object lead nowhere from now on."""
        _opened(self._files).withdraw(name)

    @property
    def denied(self) -> Mapping[str, int]:
        """How often each blocked target was tried."""
        return dict(self._proxy.denied) if self._proxy else {}

    def detach(self) -> None:
        """Stop serving but leave all in place for another process to `open`."""
        if self._proxy is not None:
            self._proxy.stop()

    def close(self) -> None:
        """Remove everything, the pause container too. Nothing happens a second time. Remove the model container before.

        Raises EngineError or SandboxError when something could not be removed; the rest is removed all the same.
        """
        self.detach()
        failure: Exception | None = None
        try:
            if self._network is not None:
                self._network.close()
        except EngineError as e:
            failure = e
        except OSError as e:
            failure = SandboxError(f"the network of {self._folder} cannot be removed: {e}; the next sweep tries again")
        try:
            remove_folder(self._folder)
        except OSError as e:
            failure = failure or SandboxError(f"{self._folder} cannot be removed: {e}; the next sweep tries again")
        if failure is not None:
            raise failure

    def _close_quietly(self) -> None:
        with suppress(EngineError, SandboxError):
            self.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def trust_targets(ca_bundles: Sequence[str]) -> tuple[str, ...]:
    """Return the paths in a container over which the trust bundle goes.

    ca_bundles: paths found inside an image, which may have been named to do harm: only those that a trust store
    can have are taken.
    """
    sane = [path for path in ca_bundles if _TRUST_STORE.fullmatch(path) and posixpath.normpath(path) == path]
    return tuple(dict.fromkeys((TRUST_TARGET, *SYSTEM_ROOTS[:2], *sane[:_MAX_STORES])))


def _opened(part: _T | None) -> _T:
    if part is None:
        raise SandboxError("the sandbox is not open")
    return part
