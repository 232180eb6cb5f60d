"""Find the API: the one named in the environment, else the platform of this machine."""

from __future__ import annotations

from urllib.parse import urlsplit

from mhs_ray.cli.command import NotRunningError
from mhs_ray.client import Client
from mhs_ray.client.errors import UnreachableError
from mhs_ray.domain.errors import ConflictError, InvalidInputError
from mhs_ray.domain.settings import Settings, client_environment, load_settings
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.platform.processes import alive
from mhs_ray.platform.up import Running

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def connect(*, operator: bool = False) -> Client:
    """Return a client of the API. Raises UnreachableError when nothing runs, InvalidInputError for half a setting.

    operator: as this machine's operator; where MHS_URL is set, its client decides.
    """
    named = client_environment()
    if named.url:
        if not (named.client_id and named.client_secret):
            raise InvalidInputError.at(
                "MHS_CLIENT_ID, MHS_CLIENT_SECRET", "are needed beside MHS_URL: the id and secret of a client"
            )
        if urlsplit(named.url).scheme not in {"http", "https"}:
            raise InvalidInputError.at("MHS_URL", "must be an http(s) URL such as https://mhs.example.org")
        return Client(named.url, named.client_id, named.client_secret.get_secret_value())
    return connect_home(load_settings(), operator=operator)


def connect_home(settings: Settings, *, operator: bool = False) -> Client:
    """Return a client of the platform that runs in this home. Raises UnreachableError when none does."""
    try:
        endpoints = Endpoints.load(settings.home)
        keys, whose = settings.home / "keys", "operator" if operator else "client"
        client_id, secret = ((keys / f"{whose}-{part}").read_text().strip() for part in ("id", "secret"))
    except (ConflictError, FileNotFoundError):
        raise NotRunningError(str(settings.home)) from None
    except PermissionError:
        raise UnreachableError(str(settings.home), "its keys belong to another user: use the same one") from None
    if not is_running(settings):
        raise NotRunningError(str(settings.home))
    return Client(endpoints.api_url, client_id, secret)


def is_running(settings: Settings) -> bool:
    """Say whether `mhs up` was called for this home and its processes live."""
    known = Running.load(settings.home)
    return known is not None and alive(known.supervisor) and any(alive(p) for p in known.ray)


def is_local(client: Client) -> bool:
    """Say whether the API runs on this machine, so that it can read files here."""
    return (urlsplit(client.url).hostname or "") in _LOOPBACK
