"""The API as methods: `AsyncClient` has them, `Client` the same ones blocking."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from mhs_ray.client.access import AccessCalls
from mhs_ray.client.blocking import blocking, blocking_each, run
from mhs_ray.client.catalog import CatalogCalls
from mhs_ray.client.http import Http, connection
from mhs_ray.client.jobs import JobCalls, is_final
from mhs_ray.client.results import ResultCalls
from mhs_ray.client.scans import ScanCalls
from mhs_ray.client.wires import BlockingWire, WaitingWire
from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.domain.settings import client_environment

__all__ = ["AsyncClient", "Client", "is_final"]


class _AllCalls(CatalogCalls, ScanCalls, JobCalls, ResultCalls, AccessCalls):
    """Every call of the API."""


class AsyncClient(_AllCalls):
    """One API, for one event loop. Every method raises ApiError and UnreachableError.

    url: the API's address without a path. What is left out comes from MHS_URL, MHS_CLIENT_ID and MHS_CLIENT_SECRET.
    retries: further tries of a request that may be sent twice.
    """

    def __init__(
        self,
        url: str | None = None,
        client_id: str | None = None,
        client_secret: str | None = None,
        *,
        retries: int = 4,
    ) -> None:
        options = _connection(url, client_id, client_secret)
        super().__init__(Http(options["base_url"], WaitingWire(options), retries=retries))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self.http.wire.close()


class Client:
    """One API, for one thread at a time. Every method raises ApiError and UnreachableError.

    url: the API's address without a path. What is left out comes from MHS_URL, MHS_CLIENT_ID and MHS_CLIENT_SECRET.
    retries: further tries of a request that may be sent twice. sleep: waits between them.
    """

    def __init__(
        self,
        url: str | None = None,
        client_id: str | None = None,
        client_secret: str | None = None,
        *,
        retries: int = 4,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        options = _connection(url, client_id, client_secret)
        self.calls = _AllCalls(Http(options["base_url"], BlockingWire(options, sleep), retries=retries))
        self.url: str = options["base_url"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        run(self.calls.http.wire.close())

    # Each is the method of the same name, run to its end at once. A test holds the two classes together.
    pause = blocking(CatalogCalls.pause)
    health = blocking(CatalogCalls.health)
    instance_types = blocking(CatalogCalls.instance_types)

    images = blocking_each(CatalogCalls.images)
    image = blocking(CatalogCalls.image)
    create_image = blocking(CatalogCalls.create_image)
    rename_image = blocking(CatalogCalls.rename_image)
    delete_image = blocking(CatalogCalls.delete_image)
    image_versions = blocking(CatalogCalls.image_versions)
    push_instructions = blocking(CatalogCalls.push_instructions)
    wait_for_image = blocking(CatalogCalls.wait_for_image)

    containers = blocking_each(CatalogCalls.containers)
    container = blocking(CatalogCalls.container)
    create_container = blocking(CatalogCalls.create_container)
    update_container = blocking(CatalogCalls.update_container)
    delete_container = blocking(CatalogCalls.delete_container)

    algorithms = blocking_each(CatalogCalls.algorithms)
    algorithm = blocking(CatalogCalls.algorithm)
    create_algorithm = blocking(CatalogCalls.create_algorithm)
    update_algorithm = blocking(CatalogCalls.update_algorithm)
    delete_algorithm = blocking(CatalogCalls.delete_algorithm)

    scans = blocking_each(ScanCalls.scans)
    scan = blocking(ScanCalls.scan)
    add_scan = blocking(ScanCalls.add_scan)
    add_scan_upload = blocking(ScanCalls.add_scan_upload)
    scan_url = blocking(ScanCalls.scan_url)
    delete_scan = blocking(ScanCalls.delete_scan)

    submit = blocking(JobCalls.submit)
    tasks = blocking_each(JobCalls.tasks)
    task = blocking(JobCalls.task)
    jobs = blocking_each(JobCalls.jobs)
    job = blocking(JobCalls.job)
    job_events = blocking(JobCalls.job_events)
    cancel = blocking(JobCalls.cancel)
    rerun = blocking(JobCalls.rerun)
    replay = blocking(JobCalls.replay)
    wait = blocking(JobCalls.wait)
    log = blocking(JobCalls.log)
    follow_log = blocking_each(JobCalls.follow_log)

    job_results = blocking(ResultCalls.job_results)
    task_results = blocking(ResultCalls.task_results)
    save_results = blocking(ResultCalls.save_results)
    results_table = blocking(ResultCalls.results_table)
    features = blocking(ResultCalls.features)
    geodataframe = blocking(ResultCalls.geodataframe)
    save_debug_file = blocking(ResultCalls.save_debug_file)

    deliveries = blocking_each(JobCalls.deliveries)
    delivery = blocking(JobCalls.delivery)
    retry_delivery = blocking(JobCalls.retry_delivery)
    discard_delivery = blocking(JobCalls.discard_delivery)

    me = blocking(AccessCalls.me)
    clients = blocking(AccessCalls.clients)
    create_client = blocking(AccessCalls.create_client)
    revoke_client = blocking(AccessCalls.revoke_client)
    companies = blocking(AccessCalls.companies)
    create_company = blocking(AccessCalls.create_company)
    update_company = blocking(AccessCalls.update_company)
    create_webhook_secret = blocking(AccessCalls.create_webhook_secret)
    remove_webhook_secret = blocking(AccessCalls.remove_webhook_secret)
    audit = blocking_each(AccessCalls.audit)
    usage = blocking(AccessCalls.usage)
    save_usage = blocking(AccessCalls.save_usage)


def _connection(url: str | None, client_id: str | None, client_secret: str | None) -> dict[str, Any]:
    named = client_environment()
    secret = named.client_secret.get_secret_value() if named.client_secret else None
    where, who, secret = url or named.url, client_id or named.client_id, client_secret or secret
    if not (where and who and secret):
        raise InvalidInputError.at(
            "url, client_id, client_secret", "give all three, or set MHS_URL, MHS_CLIENT_ID and MHS_CLIENT_SECRET"
        )
    return connection(where.rstrip("/"), who, secret)
