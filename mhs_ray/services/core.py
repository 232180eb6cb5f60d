"""The composition root: settings and endpoints in, services out. The only place that picks adapters."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as SQLAlchemyTimeoutError

from mhs_ray.auth.clients import ClientVerifier, hash_secret
from mhs_ray.auth.oidc import Outsiders
from mhs_ray.auth.tokens import Tokens
from mhs_ray.domain.errors import Fault, InvalidInputError
from mhs_ray.domain.models import Role
from mhs_ray.domain.sections import RegistrySettings
from mhs_ray.domain.settings import Settings
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.platform.keys import Keys
from mhs_ray.platform.secrets import keys_of, with_secrets
from mhs_ray.ports import BlobStore, ImageRegistry
from mhs_ray.registry.admission import AdmissionLimits
from mhs_ray.registry.distribution import DistributionRegistry
from mhs_ray.registry.keys import RegistryKeys
from mhs_ray.registry.scanner import Scanner
from mhs_ray.registry.tokens import RegistryTokens
from mhs_ray.results.outbox import Pace
from mhs_ray.results.techcyte import TechcyteHttp
from mhs_ray.services.access import AccessService
from mhs_ray.services.cohort_check import SlideCheck
from mhs_ray.services.cohorts import CohortService
from mhs_ray.services.containers import AlgorithmService, ContainerService
from mhs_ray.services.delivery import Courier, DeliveryService, OnTry
from mhs_ray.services.gateway import GatewayService
from mhs_ray.services.images import ImageService
from mhs_ray.services.jobs import JobService
from mhs_ray.services.policy import REGISTRY_ISSUER, REGISTRY_SERVICE, open_blobs, url_policy
from mhs_ray.services.room import Room
from mhs_ray.services.scans import ScanService
from mhs_ray.store.blobs.s3_slides import S3Slides
from mhs_ray.store.sql.audit import Audit
from mhs_ray.store.sql.clients import Clients
from mhs_ray.store.sql.cohorts import Cohorts
from mhs_ray.store.sql.companies import Companies
from mhs_ray.store.sql.containers import Algorithms, Containers
from mhs_ray.store.sql.database import Database
from mhs_ray.store.sql.deliveries import Deliveries
from mhs_ray.store.sql.images import Images
from mhs_ray.store.sql.jobs import Jobs
from mhs_ray.store.sql.results import Results
from mhs_ray.store.sql.scans import Scans
from mhs_ray.store.sql.secrets import Vault
from mhs_ray.store.sql.tasks import Tasks

log = logging.getLogger(__name__)

_AGAIN_S: Final = 1.0


@dataclass(frozen=True)
class Core:
    """Everything a part of the platform may need, built once per process."""

    settings: Settings
    endpoints: Endpoints
    keys: Keys
    db: Database
    blobs: BlobStore
    tokens: Tokens
    clients: Clients
    verifier: ClientVerifier
    registry: ImageRegistry
    registry_tokens: RegistryTokens
    images: ImageService
    containers: ContainerService
    algorithms: AlgorithmService
    scans: ScanService
    tasks: Tasks
    jobs: JobService
    gateway: GatewayService
    deliveries: DeliveryService
    room: Room
    cohorts: CohortService
    companies: Companies
    audit: Audit
    access: AccessService
    outsiders: Outsiders


def _first_clients(clients: Clients, keys: Keys) -> None:
    """Let whoever can read this machine's keys in: as the company `local`'s admin, and as the operator."""
    for client_id, secret, name, role in (
        (keys.client_id, keys.client_secret, "local", Role.LAB_ADMIN),
        (keys.operator_id, keys.operator_secret, "operator", Role.OPERATOR),
    ):
        if clients.lookup(client_id) is None:
            clients.add(client_id, clients.ensure_company("local"), name, role, hash_secret(secret))


def open_database(settings: Settings, keys: Keys) -> Database:
    """Return the database, its schema up to date."""
    db = Database(with_secrets(settings).sql_url, Vault(keys.vault))
    db.migrate()
    return db


def build_core(settings: Settings, endpoints: Endpoints, wake: Callable[[], None] = lambda: None) -> Core:
    """Build the services. wake: tells the dispatcher that there is something to do."""
    keys = keys_of(settings)
    db = open_database(settings, keys)
    clients = Clients(db)
    _first_clients(clients, keys)
    companies, audit, verifier = Companies(db), Audit(db), ClientVerifier(clients)
    blobs = open_blobs(settings, endpoints, keys)
    images, results, jobs = Images(db), Results(db), Jobs(db)
    registry_tokens = RegistryTokens(
        RegistryKeys.load_or_create(settings.home / "keys" / "registry"),
        REGISTRY_ISSUER,
        REGISTRY_SERVICE,
        may_push=images.owned,
    )
    registry = open_registry(settings.registry, endpoints.registry, registry_tokens)
    algorithms = AlgorithmService(Algorithms(db))
    s3 = S3Slides(settings.slides.s3_buckets, settings.blobs.endpoint_url, settings.blobs.region)
    scans = ScanService(Scans(db), blobs, url_policy(settings, endpoints), s3)
    job_service = JobService(jobs, results, blobs, wake)
    return Core(
        settings=settings,
        endpoints=endpoints,
        keys=keys,
        db=db,
        blobs=blobs,
        tokens=Tokens(keys.tokens),
        clients=clients,
        verifier=verifier,
        registry=registry,
        registry_tokens=registry_tokens,
        images=ImageService(images, registry, settings.registry.credential_life),
        containers=ContainerService(Containers(db), images, settings.jobs.max_time_limit),
        algorithms=algorithms,
        scans=scans,
        tasks=Tasks(db, delivers=settings.techcyte.url is not None),
        jobs=job_service,
        gateway=GatewayService(results, blobs, wake),
        deliveries=DeliveryService(Deliveries(db), wake),
        room=Room(settings.home, blobs, settings.blobs),
        companies=companies,
        audit=audit,
        access=AccessService(clients, companies, audit, verifier),
        outsiders=Outsiders(settings.auth.issuers, clients, companies),
        cohorts=CohortService(
            Cohorts(db), db, algorithms, scans, job_service, SlideCheck(url_policy(settings, endpoints), s3, scans),
            settings.cohorts, settings.host, wake,
        ),
    )  # fmt: skip


def open_registry(settings: RegistrySettings, here: str, tokens: RegistryTokens) -> ImageRegistry:
    """Return the registry that the settings name. here: the address of this machine's own."""
    limits = AdmissionLimits(compressed=settings.max_image)
    scanner = Scanner(settings.scanner) if settings.scanner else None
    if settings.kind == "distribution":
        tls = settings.tls and settings.address is not None
        return DistributionRegistry(settings.address or here, tokens, limits, scanner, tls=tls)
    if settings.address is None or settings.role is None:
        raise InvalidInputError(
            [
                Fault(f"MHS_REGISTRY__{name}", f"is needed with MHS_REGISTRY__KIND=ecr: {what}")
                for name, value, what in (
                    ("ADDRESS", settings.address, "ACCOUNT.dkr.ecr.REGION.amazonaws.com"),
                    ("ROLE", settings.role, "the ARN of the role that pushes and pulls are cut from"),
                )
                if value is None
            ]
        )
    from mhs_ray.registry.ecr import EcrRegistry  # boto3 takes long to import

    return EcrRegistry(
        settings.address, settings.role, prefix=settings.prefix, limits=limits, scanner=scanner,
        max_severity=settings.max_severity, tls=settings.tls,
    )  # fmt: skip


def build_courier(core: Core, on_try: OnTry = lambda *_: None) -> Courier | None:
    """Return what delivers to Techcyte, None where the settings name no host to deliver to."""
    settings = core.settings.techcyte
    if settings.url is None:
        return None
    client = TechcyteHttp(settings.url, ca=settings.ca, timeout=settings.timeout, deadline=timedelta(minutes=30))
    pace = Pace(settings.backoff, settings.backoff_max, settings.settle)
    return Courier(core.deliveries.deliveries, core.blobs, client, pace, on_try=on_try)


def build_core_patiently(settings: Settings, endpoints: Endpoints, wake: Callable[[], None] = lambda: None) -> Core:
    """`build_core`, tried until the database is there: Ray never restarts an actor whose constructor failed."""
    while True:
        try:
            return build_core(settings, endpoints, wake)
        except (DBAPIError, SQLAlchemyTimeoutError) as error:
            log.warning("the database does not answer (%s); it is tried again", type(error).__name__)
            time.sleep(_AGAIN_S)
