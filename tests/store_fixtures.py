"""A small catalog to put jobs on, for every test that needs a database."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography.fernet import Fernet

from mhs_ray.domain.env import EnvVar
from mhs_ray.domain.models import Algorithm, Container, Image, ImageRef, Job, Priority, Provider, Scan, ScanStatus
from mhs_ray.domain.states import JobEvent
from mhs_ray.store.sql import tables as t
from mhs_ray.store.sql.clients import Clients
from mhs_ray.store.sql.containers import Algorithms, Containers
from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.images import Images
from mhs_ray.store.sql.jobs import Jobs
from mhs_ray.store.sql.results import Results
from mhs_ray.store.sql.scans import Scans
from mhs_ray.store.sql.secrets import Vault
from mhs_ray.store.sql.tasks import RequestedScan, Submission, Submitted, Tasks

VAULT_KEY = Fernet.generate_key()
DIGEST = "sha256:" + "ab" * 32


def vault() -> Vault:
    """Return a vault; the same key every time."""
    return Vault([VAULT_KEY])


@cache
def migrated_sqlite() -> bytes:
    """Return the file of a migrated SQLite database: copying it takes a tenth of migrating."""
    with tempfile.TemporaryDirectory() as folder:
        db = Database(f"sqlite:///{folder}/mhs.db", vault())
        db.migrate()
        db.close()
        return (Path(folder) / "mhs.db").read_bytes()


@contextmanager
def sqlite_db(folder: Path) -> Iterator[Database]:
    """Return a fresh, migrated SQLite database."""
    (folder / "mhs.db").write_bytes(migrated_sqlite())
    db = Database(f"sqlite:///{folder}/mhs.db", vault())
    try:
        yield db
    finally:
        db.close()


@dataclass
class World:
    """Repositories over one database, and short ways to fill it."""

    db: Database
    images: Images = field(init=False)
    containers: Containers = field(init=False)
    algorithms: Algorithms = field(init=False)
    scans: Scans = field(init=False)
    tasks: Tasks = field(init=False)
    jobs: Jobs = field(init=False)
    results: Results = field(init=False)
    clients: Clients = field(init=False)

    def __post_init__(self) -> None:
        self.images, self.containers, self.algorithms = Images(self.db), Containers(self.db), Algorithms(self.db)
        self.scans, self.tasks, self.jobs = Scans(self.db), Tasks(self.db), Jobs(self.db)
        self.results, self.clients = Results(self.db), Clients(self.db)
        self._names = itertools.count()

    def company(self, name: str | None = None, **values: Any) -> int:
        """Make a company; values: its other columns."""
        company_id = self.clients.ensure_company(name or f"company {next(self._names)}")
        if values:
            with self.db.write() as conn:
                conn.execute(sa.update(t.companies).where(t.companies.c.id == company_id).values(**values))
        return company_id

    def image(self, company_id: int, *, uploaded: bool = True, digest: str = DIGEST) -> Image:
        """Make an image definition that was pushed and admitted."""
        image = self.images.create(company_id, f"image {next(self._names)}", "ann")
        if uploaded:
            self.images.begin_check(image.id, digest)
            self.images.uploaded(
                image.id, digest, ImageRef("reg:5000", f"trusted/{image.id}", digest), 5, {"os": "linux"}
            )
        return self.images.get(company_id, image.id)

    def container(self, company_id: int, image: Image | None = None, **values: Any) -> Container:
        """Make a runnable container."""
        image = image or self.image(company_id)
        env = values.pop("env", [EnvVar("THRESHOLD", "0.5"), EnvVar("API_KEY", "env-s3cret", secret=True)])
        defaults = {
            "name": f"container {next(self._names)}", "image_id": image.id, "instance_type": "g4dn.xlarge",
            "time_limit_s": 600, "retry_exit_codes": [], "max_model_retries": 0,
        }  # fmt: skip
        return self.containers.create(company_id, "ann", {**defaults, **values}, env)

    def algorithm(self, company_id: int, container: Container | None = None, name: str | None = None) -> Algorithm:
        """Make a case algorithm."""
        container = container or self.container(company_id)
        return self.algorithms.create(
            company_id, "ann", name or f"algorithm {next(self._names)}", Provider.MHS, container.id
        )

    def scan(self, company_id: int, **values: Any) -> Scan:
        """Make a scan that can be used."""
        defaults = {"name": "scan", "source": "url", "location": {"urls": ["https://s.example.com/a?sig=url-s3cret"]}}
        return self.scans.create(company_id, "ann", **{**defaults, "status": ScanStatus.READY, **values})

    def submission(self, company_id: int, algorithm: Algorithm, *scans: Scan, **values: Any) -> Submission:
        """Return a submission on registered scans."""
        wanted = tuple(RequestedScan(id=s.id, path=f"$.scan_ids[{i}]") for i, s in enumerate(scans))
        defaults: dict[str, Any] = {"by": "ann", "origin": "local", "host": "mhs.internal"}
        return Submission(
            **{**defaults, "company_id": company_id, "scans": wanted, "algorithm_id": algorithm.id, **values}
        )

    def submit(
        self, company_id: int, *, scans: int = 1, algorithm: Algorithm | None = None, **values: Any
    ) -> Submitted:
        """Submit a task on fresh scans."""
        algorithm = algorithm or self.algorithm(company_id)
        return self.tasks.submit(
            self.submission(company_id, algorithm, *(self.scan(company_id) for _ in range(scans)), **values)
        )

    def queued(
        self, company_id: int, algorithm: Algorithm | None = None, priority: Priority = Priority.CLINICAL
    ) -> int:
        """Queue one job; return its id."""
        return self.submit(company_id, algorithm=algorithm, priority=priority).job_ids[0]

    def claim(self, limit: int = 100, waiting: int = 1000) -> list[Job]:
        """Claim now."""
        return self.jobs.claim(limit, waiting, datetime.now(UTC))

    def running(self, company_id: int) -> Job:
        """Return a job whose first attempt runs."""
        job_id = self.queued(company_id)
        assert job_id in {j.id for j in self.claim()}
        self.jobs.transition(job_id, JobEvent.PLACED, attempt=1, node="node-a")
        self.jobs.transition(job_id, JobEvent.STARTED, attempt=1)
        return self.jobs.find(job_id)
