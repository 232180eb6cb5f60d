"""The console in a real browser, on a real server with a real database, blob store and slide.

The one thing that is not real is the image registry: `FakeRegistry` says that whatever was "pushed" is good.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from api.app import Peers, build_app
from api.console import assets
from mhs_ray.attempt.logbook import LogWriter
from mhs_ray.auth.clients import hash_secret
from mhs_ray.auth.tokens import AttemptIdentity
from mhs_ray.domain.capacity import Capacity
from mhs_ray.domain.cohorts import Cohort
from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.models import Algorithm, Job, Principal, Role, Scan
from mhs_ray.domain.settings import Settings
from mhs_ray.domain.states import JobEvent
from mhs_ray.services.cohorts import ManifestRow
from mhs_ray.services.core import Core, build_core
from mhs_ray.services.images import ImageService
from mhs_ray.services.policy import page_origins
from mhs_ray.slides.demo import make_demo_slide
from mhs_ray.store.blobs.http import BlobApp, HttpLimits
from mhs_ray.store.blobs.local import LocalBlobs
from tests.api_fixtures import HOUR, FakeRegistry
from tests.core_fixtures import ENDPOINTS, world_of
from tests.oidc_fixtures import CLIENT_ID, CLIENT_SECRET, OpenIdProvider, open_id_provider
from tests.s3_fixtures import free_ports
from tests.store_fixtures import World

_FLAGS = (
    "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
SECRET = "a-client-s3cret"
CAPACITY: dict[str, Capacity] = {}
"""What the autoscaler would say; a test that fills it empties it again."""
TIMEOUT_MS = 60_000
SQUARE = [[600, 500], [1900, 500], [1900, 1400], [600, 1400], [600, 500]]
"""The annotation of the succeeded job, in pixels of level 0."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@dataclass
class Site:
    """The running console, and one company with something of everything."""

    url: str
    core: Core
    world: World
    slide: Path
    provider: OpenIdProvider
    company: int = 0
    scan: Scan = field(init=False)
    algorithm: Algorithm = field(init=False)
    succeeded: Job = field(init=False)
    failed: Job = field(init=False)
    cohort: Cohort = field(init=False)

    def client(self, role: Role, name: str) -> str:
        """Make an API client of the company; return its id. All have the same secret."""
        client_id = f"mhs-{name}"
        self.core.clients.add(client_id, self.company, name, role, hash_secret(SECRET))
        return client_id

    def submit(self) -> Job:
        """Queue a job on the slide."""
        request = self.world.submission(self.company, self.algorithm, self.scan)
        return self.world.jobs.find(self.world.tasks.submit(request).job_ids[0])

    def run(self) -> Job:
        """Return a job whose container runs."""
        job_id = self.submit().id
        self.world.claim()
        self.world.jobs.transition(job_id, JobEvent.PLACED, attempt=1, node="node-a")
        self.world.jobs.transition(job_id, JobEvent.STARTED, attempt=1)
        return self.world.jobs.find(job_id)

    def succeed(self, job: Job) -> Job:
        """Post a result as the job's container and end it."""
        who = AttemptIdentity(job.company_id, job.task_number, job.id, job.attempt)
        polygon = {
            "type": "Feature", "properties": {"annotation_type": "tumor"},
            "geometry": {"type": "Polygon", "coordinates": [SQUARE]},
        }  # fmt: skip
        body = {
            "scanResults": [
                {
                    "scanId": str(job.scan_number), "results": {"mitosisCount": 4},
                    "geojson": {"type": "FeatureCollection", "features": [polygon]},
                }
            ]
        }  # fmt: skip
        headers = {"Authorization": f"Bearer {self.core.tokens.for_attempt(who, HOUR)}"}
        answer = httpx.post(f"{self.url}/api/v3/external/results/{job.task_number}", json=body, headers=headers)
        assert answer.status_code == 201, answer.text
        self.world.jobs.transition(job.id, JobEvent.EXITED, attempt=1)
        self.world.jobs.transition(job.id, JobEvent.SUCCEEDED, attempt=1)
        return self.world.jobs.find(job.id)

    def fail(self, job: Job) -> Job:
        """End a job with a failure card."""
        card = Failure(FailureCode.EXIT_CODE, "the container ended with exit code 3", "look at its log", "Boom", 3)
        self.world.jobs.transition(job.id, JobEvent.EXITED, attempt=1)
        self.world.jobs.transition(job.id, JobEvent.FAILED, attempt=1, failure=card)
        return self.world.jobs.find(job.id)

    def log(self, job: Job, *lines: str, first: int = 0) -> None:
        """Add lines to a job's log."""
        writer = LogWriter(self.core.blobs, job.id, job.attempt, first_line=first)
        writer.output("stdout", "".join(f"{line}\n" for line in lines).encode())
        writer.close()

    def seed(self) -> None:
        """Make the company and what it has."""
        self.company = self.world.company("North Lab", external_id="1052")
        owner = Principal(self.company, "ann", Role.LAB_ADMIN, "seed")
        self.scan = self.core.scans.add_path(owner, str(self.slide), "Demo slide", None)
        container = self.world.container(self.company, name="Mitosis container")
        self.algorithm = self.world.algorithm(self.company, container, "Mitosis finder")
        job = self.run()
        self.log(job, *(f"line {n} of the model" for n in range(1500)))
        self.succeeded = self.succeed(job)
        self.cohort = self.core.cohorts.create(
            owner, key="lung", container="Mitosis container", manifest="0" * 64, rows=1, canary=1, name="Lung",
            skip_known=True, mixed_formats=False,
        )[0]  # fmt: skip
        self.core.cohorts.add(owner, self.cohort.id, [ManifestRow(1, "demo", f"scan:{self.scan.id}")])
        self.core.cohorts.start(owner, self.cohort.id, leave_out_bad=False)
        self.core.cohorts.cancel(owner, self.cohort.id)
        job = self.run()
        self.log(job, "Boom")
        self.failed = self.fail(job)


@contextmanager
def _served(app: Any, port: int) -> Iterator[None]:
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=2)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def site_in(home: Path, provider: OpenIdProvider) -> Iterator[Site]:
    """Run the console for as long as the block lasts."""
    api, blobs_port = free_ports(2)
    url = f"http://127.0.0.1:{api}"
    endpoints = replace(ENDPOINTS, api_url=url, blobs_url=f"http://127.0.0.1:{blobs_port}")
    issuer = {"issuer": provider.url, "name": "the lab's directory", "client_id": CLIENT_ID}
    settings = Settings(
        home=home / "h", blobs={"min_free": 0}, auth={"issuers": [{**issuer, "client_secret": CLIENT_SECRET}]}
    )
    core = build_core(settings, endpoints)
    registry = FakeRegistry()
    images = ImageService(core.images.images, registry, settings.registry.credential_life)
    core = replace(core, registry=registry, images=images)
    slide = home / "demo.svs"
    make_demo_slide(slide, 2560, 1920)
    assert isinstance(core.blobs, LocalBlobs)

    async def ping() -> str:
        return "ok"

    with ExitStack() as stack:
        limits = HttpLimits(1 << 30, cors_origins=page_origins(settings, url))
        stack.enter_context(_served(BlobApp(core.blobs, limits), blobs_port))
        app = build_app(lambda: (core, Peers(lambda: None, lambda _ids: None, ping, capacity=lambda: CAPACITY)))
        stack.enter_context(_served(app, api))
        site = Site(url, core, world_of(core), slide, provider)
        site.seed()
        yield site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with open_id_provider() as provider, site_in(tmp_path_factory.mktemp("console"), provider) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for one module's tests: while Playwright's loop is there, nobody else's `asyncio.run` works."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    if assets.missing():
        pytest.skip(f"the console's files are missing: {assets.MEND}")
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=list(_FLAGS))
        yield found
        found.close()


def sign_in(page: Page, site: Site, client_id: str) -> None:
    """Fill in the sign-in page, wherever the browser was led to it from."""
    page.get_by_label("Client id").fill(client_id)
    page.get_by_label("Client secret").fill(SECRET)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()


@contextmanager
def watched(context: BrowserContext) -> Iterator[Page]:
    """Yield a page; whatever its console reports as an error, a breach of the CSP among them, fails the test."""
    errors: list[str] = []
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page.on("console", lambda m: errors.append(f"{page.url}: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda e: errors.append(f"{page.url}: {e}"))
    yield page
    # A page that answers 4xx on purpose (a form with faults) is no error of the console's.
    assert [e for e in errors if "Failed to load resource: the server responded with a status of 4" not in e] == []


@pytest.fixture(scope="session")
def _admin(site: Site) -> str:
    return site.client(Role.LAB_ADMIN, "Ada")


@pytest.fixture(scope="module")
def _admin_state(site: Site, browser: Browser, _admin: str) -> Any:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{site.url}/console/")
    sign_in(page, site, _admin)
    state = context.storage_state()
    context.close()
    return state


@pytest.fixture
def page(site: Site, browser: Browser, _admin_state: Any) -> Iterator[Page]:
    """A page of a lab's admin who is signed in."""
    context = browser.new_context(
        base_url=site.url, storage_state=_admin_state, viewport={"width": 1280, "height": 900}
    )
    with watched(context) as found:
        yield found
    context.close()


@pytest.fixture
def stranger(site: Site, browser: Browser) -> Iterator[Page]:
    """A page of a browser that is not signed in."""
    context = browser.new_context(base_url=site.url)
    with watched(context) as found:
        yield found
    context.close()
