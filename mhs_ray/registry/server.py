"""Runs Debian's ``docker-registry`` (distribution 2.8) for us on loopback: configuration, start, stop, health.

Push, pull and delete need a token of our realm; our own client alone holds tokens that delete. Uploads that were
given up are purged. Its notifications are kept in its memory only (a kill loses them): hints, never the truth.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import httpx

from mhs_ray.domain.errors import OverloadedError, RegistryError
from mhs_ray.registry.keys import write_secret

log = logging.getLogger(__name__)

BINARY: Final = "docker-registry"
_LOG_TAIL_BYTES: Final = 4000


class RegistryServer:
    """One registry process whose whole state lies under `root`.

    realm_url: our token route as *clients* reach it. cert_path: certificate that tokens are verified against.
    notification_url: gets pushes as JSON, with ``Authorization: Bearer <notification_secret>``.
    """

    def __init__(
        self,
        root: Path,
        port: int,
        realm_url: str,
        issuer: str,
        service: str,
        cert_path: Path,
        notification_url: str,
        notification_secret: str,
        binary: str = BINARY,
        host: str = "127.0.0.1",
    ) -> None:
        self.root, self.port, self.realm_url, self.issuer, self.service = root, port, realm_url, issuer, service
        self._cert_path, self._binary, self._host = cert_path, binary, host
        self._notification_url, self._notification_secret = notification_url, notification_secret
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Return ``host:port`` as image references name it."""
        return f"{self._host}:{self.port}"

    @property
    def config_path(self) -> Path:
        """Return where :meth:`write_config` writes; holds secrets, mode 0600."""
        return self.root / "config.yml"

    @property
    def log_path(self) -> Path:
        """Return the file that takes the process's output."""
        return self.root / "registry.log"

    @property
    def storage_path(self) -> Path:
        """Return the folder of blobs and manifests."""
        return self.root / "storage"

    def command(self) -> list[str]:
        """Return what to execute, with :meth:`environment`. Raises RegistryError when the program is missing."""
        return [self._find_binary(), "serve", str(self.config_path)]

    def environment(self) -> dict[str, str]:
        """Return the whole environment of the process: ``REGISTRY_*`` of ours would override its configuration."""
        return {"PATH": os.defpath, "HOME": str(self.root)}

    def write_config(self) -> Path:
        """Write the configuration and return its path; the same secret is kept, so uploads survive a restart."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        secret_path = self.root / "http.secret"
        if not secret_path.exists():
            write_secret(secret_path, secrets.token_hex(32).encode())
        config = self._config(secret_path.read_text())
        write_secret(self.config_path, json.dumps(config, indent=1).encode())  # JSON is YAML
        return self.config_path

    def start(self, timeout_s: float = 20) -> None:
        """Start the process and return once it answers; does nothing if ours runs. Raises RegistryError.

        A registry that a killed predecessor of us left behind (same configuration file) is ended first.
        """
        if self.running:
            return
        command = self.command()
        self.write_config()
        self._end_leftover()
        with self.log_path.open("ab") as out:
            self.log_path.chmod(0o600)
            self._process = subprocess.Popen(
                command, env=self.environment(), cwd=self.root, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        self._pid_path.write_text(str(self._process.pid))
        deadline = time.monotonic() + timeout_s
        answers = False
        while not answers:
            time.sleep(0.05)
            answers = self.healthy(timeout_s=0.5)
            if self._process.poll() is not None:  # looked at last: what answers may be another's
                self._pid_path.unlink(missing_ok=True)
                raise RegistryError(f"{self._binary} ended at once on {self.address}: {self._last_words()}")
            if not answers and time.monotonic() > deadline:
                self.stop()
                raise RegistryError(f"{self._binary} did not answer on {self.address} within {timeout_s:g} s")
        log.info("registry answers on %s", self.address)

    def stop(self, grace_s: float = 10) -> None:
        """End the process that :meth:`start` started; nothing happens if there is none."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._pid_path.unlink(missing_ok=True)

    @property
    def running(self) -> bool:
        """Say whether the process that :meth:`start` started lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Return the process id while it runs."""
        return self._process.pid if self._process is not None and self.running else None

    def healthy(self, timeout_s: float = 2) -> bool:
        """Say whether a registry answers here that sends its clients to our realm."""
        try:
            answer = httpx.get(f"http://{self.address}/v2/", timeout=timeout_s, trust_env=False)
        except httpx.HTTPError:
            return False
        challenge = answer.headers.get("www-authenticate", "")
        return answer.status_code == 401 and f'realm="{self.realm_url}"' in challenge

    def check_room(self, reserve_bytes: int = 5 << 30) -> None:
        """Raise OverloadedError when the disk has so little left that no push should begin; the jobs need it more."""
        free = shutil.disk_usage(self.root).free
        if free < reserve_bytes:
            raise OverloadedError(
                f"the image registry has {free / 1e9:.1f} GB left, too little for a push; "
                "ask the operator to remove images or to enlarge its disk",
                retry_after_s=600,
            )

    def collect_garbage(self, timeout_s: float = 3600) -> None:
        """Free the space of what was removed and of pushes that a later push replaced; promoted versions stay.

        Only while the registry is stopped: an upload under way would lose layers.
        """
        if self.running or self.healthy():
            raise RegistryError("stop the registry before its garbage is collected: a push under way would lose layers")
        self.write_config()
        command = [self._find_binary(), "garbage-collect", "--delete-untagged", str(self.config_path)]
        done = subprocess.run(
            command, env=self.environment(), capture_output=True, timeout=timeout_s, check=False, cwd=self.root
        )
        if done.returncode:
            raise RegistryError(f"garbage collection in {self.storage_path} failed: {_last_line(done.stderr)}")

    @property
    def _pid_path(self) -> Path:
        return self.root / "registry.pid"

    def _find_binary(self) -> str:
        found = shutil.which(self._binary)
        if found is None:
            raise RegistryError(
                f"the program {self._binary} is not installed, so no images can be pushed; "
                "install it (Debian, Ubuntu: apt-get install docker-registry) or set an external registry"
            )
        return found

    def _end_leftover(self) -> None:
        try:
            pid = int(self._pid_path.read_text())
        except (OSError, ValueError):
            return
        for number, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            deadline = time.monotonic() + patience_s
            while time.monotonic() < deadline:
                if not self._is_ours(pid):
                    return
                log.warning("ending the registry %d that an earlier start left behind", pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                time.sleep(0.1)

    def _is_ours(self, pid: int) -> bool:
        """Say whether this process runs on our configuration; its number may be another's by now."""
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return os.fsencode(self.config_path) in words

    def _last_words(self) -> str:
        with self.log_path.open("rb") as file:
            file.seek(max(0, self.log_path.stat().st_size - _LOG_TAIL_BYTES))
            return _last_line(file.read())

    def _config(self, http_secret: str) -> dict[str, Any]:
        return {
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.storage_path)},
                "cache": {"blobdescriptor": "inmemory"},
                "delete": {"enabled": True},  # needs the action "delete", which only our own tokens give
                "maintenance": {"uploadpurging": {"enabled": True, "age": "24h", "interval": "1h", "dryrun": False}},
            },
            "http": {
                "addr": self.address,
                "secret": http_secret,
                "relativeurls": True,  # right behind any proxy or port forward
                "headers": {"X-Content-Type-Options": ["nosniff"]},
            },
            "auth": {
                "token": {
                    "realm": self.realm_url,
                    "service": self.service,
                    "issuer": self.issuer,
                    "rootcertbundle": str(self._cert_path),
                }
            },
            "health": {"storagedriver": {"enabled": True, "interval": "10s", "threshold": 3}},
            "notifications": {
                "endpoints": [
                    {
                        "name": "mhs",
                        "url": self._notification_url,
                        "headers": {"Authorization": [f"Bearer {self._notification_secret}"]},
                        "timeout": "5s",
                        "threshold": 5,
                        "backoff": "5s",
                        "ignore": {"mediatypes": ["application/octet-stream"], "actions": ["pull", "mount", "delete"]},
                    }
                ]
            },
        }


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1][-400:] if lines else "it said nothing"
