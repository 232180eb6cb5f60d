"""What ``mhs doctor --cluster`` looks at: a cluster file, or on the head what a cluster depends on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mhs_ray.cli.doctor import Check
from mhs_ray.domain.errors import InvalidInputError, MhsError
from mhs_ray.domain.launch_failures import explain_launch_failure
from mhs_ray.domain.models import ImageRef
from mhs_ray.domain.settings import Settings, settings_with

_CONNECT_S: Final = 5
_PROBE: Final = "health/doctor"
PLACEHOLDER: Final = "REPLACE_"


def examine_file(path: Path) -> list[Check]:
    """Look at a cluster file, or at a file of settings for its nodes (``.env``); asks nobody."""
    if path.suffix == ".env":
        return _settings_file(path)
    from mhs_ray.actors.cluster_file import check_cluster_file

    found = check_cluster_file(path)
    checks = [Check(f.where, "wrong" if f.needed else "optional", f.message, f.mend) for f in found]
    if not any(f.needed for f in found):
        checks.append(Check(str(path), "ok", "Ray and EC2 would take it"))
    return checks


def _settings_file(path: Path) -> list[Check]:
    variables: dict[str, str] = {}
    checks = []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return [Check(str(path), "wrong", f"cannot be read: {type(error).__name__}", "name cluster/aws/mhs.env")]
    for number, line in enumerate(lines, 1):
        name, sign, value = line.partition("=")
        where = f"{path}, line {number}"
        if not line or line.startswith("#"):
            continue
        if not sign or not name.isidentifier():
            checks.append(Check(where, "wrong", "is not NAME=VALUE", "mend that line"))
        elif PLACEHOLDER in value:
            checks.append(Check(where, "wrong", f"{name} still has the example's value", "put your own value there"))
        elif name.startswith("MHS_"):
            variables[name] = value
    try:
        with settings_with(variables):
            pass
    except InvalidInputError as error:
        checks += [Check(f.path, "wrong", f.message, "`mhs doctor --settings` lists them all") for f in error.faults]
    return checks or [Check(str(path), "ok", f"{len(variables)} settings")]


def examine_cluster(settings: Settings) -> list[Check]:
    """Look at secrets, database, blobs, registry and the autoscaler, as this machine reaches them."""
    return [*_secrets(settings), *_database(settings), *_blobs(settings), *_registry(settings), *_launches(settings)]


def _secrets(settings: Settings) -> Iterator[Check]:
    from mhs_ray.platform.secrets import keys_of

    try:
        keys_of(settings, write=False)
    except (MhsError, OSError) as error:
        yield Check("keys", "wrong", str(error), "`mhs secrets check` says where each one comes from")
    else:
        yield Check("keys", "ok", "all there")


def _database(settings: Settings) -> Iterator[Check]:
    import sqlalchemy as sa
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

    from mhs_ray.platform.secrets import with_secrets

    try:
        url = sa.make_url(with_secrets(settings).sql_url)
        shown = url.render_as_string(hide_password=True)
    except MhsError as error:
        yield Check("database", "wrong", str(error), "mend the secret or the setting")
        return
    except ArgumentError:
        yield Check("database", "wrong", "its URL cannot be read", "give postgresql://USER:PASSWORD@HOST:5432/NAME")
        return
    if url.get_backend_name() == "sqlite":
        mend = "on a cluster set MHS_DATABASE_URL: a head that is replaced loses its disk"
        yield Check("database", "optional", f"{shown} is on this machine's disk", mend)
        return
    try:
        driver = url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url
        engine = sa.create_engine(driver, connect_args={"connect_timeout": _CONNECT_S}, hide_parameters=True)
        with engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
        engine.dispose()
    except NoSuchModuleError:
        yield Check("database", "wrong", f"{shown} is of an unknown kind", "give postgresql://…")
    except DBAPIError as error:
        words = str(error.orig).strip().splitlines()
        yield Check("database", "wrong", f"{shown}: {words[0] if words else 'no answer'}", _advice(" ".join(words)))
    else:
        yield Check("database", "ok", shown)


def _advice(words: str) -> str:
    if re.search(r"password authentication|no password|role .* does not exist", words):
        return "mend user or password in the database's URL"
    if re.search(r"database .* does not exist", words):
        return "create the database, or mend its name in the URL"
    return "see its address, its security group, and the way to it from here"


def _blobs(settings: Settings) -> Iterator[Check]:
    from mhs_ray.store.blobs.s3 import S3Blobs

    if settings.blobs.kind == "local":
        mend = "on a cluster set MHS_BLOBS__KIND=s3, so that every node reaches them"
        yield Check("blobs", "optional", "in a folder of this machine", mend)
        return
    where = f"bucket {settings.blobs.bucket}"
    try:
        store = S3Blobs.connect(
            settings.blobs.bucket, settings.blobs.prefix,
            endpoint=settings.blobs.endpoint_url, region=settings.blobs.region,
        )  # fmt: skip
        store.put(_PROBE, b"ok")
        store.delete(_PROBE)
    except MhsError as error:
        yield Check("blobs", "wrong", f"{where}: {error}", "see MHS_BLOBS__… and cluster/aws/iam/head.json")
    else:
        yield Check("blobs", "ok", f"{where} takes and gives them")


def _registry(settings: Settings) -> Iterator[Check]:
    from mhs_ray.platform.endpoints import Endpoints
    from mhs_ray.registry.keys import RegistryKeys
    from mhs_ray.registry.tokens import RegistryTokens
    from mhs_ray.services.core import open_registry
    from mhs_ray.services.policy import REGISTRY_ISSUER, REGISTRY_SERVICE

    try:
        here = settings.registry.address or Endpoints.of(settings).registry
        keys = RegistryKeys.load_or_create(settings.home / "keys" / "registry")
        tokens = RegistryTokens(keys, REGISTRY_ISSUER, REGISTRY_SERVICE, may_push=lambda _image, _company: False)
        registry = open_registry(settings.registry, here, tokens)
        registry.pushed(0)
        if settings.registry.kind == "ecr":
            registry.pull_credential(ImageRef(here, f"{settings.registry.prefix}trusted/0", "sha256:" + "0" * 64))
    except (MhsError, OSError) as error:
        yield Check("registry", "wrong", str(error), "see MHS_REGISTRY__… and that this machine reaches it")
    else:
        yield Check("registry", "ok", f"{here} answers and gives credentials")


def _launches(settings: Settings) -> Iterator[Check]:
    from mhs_ray.actors.launches import find_ray, launches

    found = find_ray()
    if found is None:
        yield Check("Ray", "wrong", "none runs on this machine", "`ray up cluster/aws.yaml`, and ask on the head")
        return
    try:
        known = launches(*found)
    except Exception as error:
        mend = "see RAY_AUTH_TOKEN_PATH (`mhs-env head …` sets it) and the head's gcs_server log"
        yield Check("Ray", "wrong", f"{found[0]} does not answer: {type(error).__name__}", mend)
        return
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(known.nodes.items())) or "none"
    yield Check("Ray", "ok", f"nodes: {told}; starting: {sum(known.starting.values())}")
    for refused in known.refused:
        what = explain_launch_failure(refused.words)
        words = f": {' '.join(refused.words.split())[:300]}" if refused.words else ""
        yield Check(
            f"node type {refused.node_type}", "wrong", f"{what.kind}, {refused.ago_s:.0f} s ago{words}", what.mend
        )
