"""Where the platform's keys and its database's URL come from: environment, a folder, AWS Secrets Manager, own files.

One machine keeps its keys in ``keys`` of the home folder and makes them itself. Where a folder or a secret is named,
all of them must be there: a key made anew on another head would open nothing that was sealed before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from mhs_ray.domain.errors import MhsError
from mhs_ray.domain.sections import SecretSettings
from mhs_ray.domain.settings import Settings
from mhs_ray.platform.keys import KEY_NAMES, Keys, fresh_key, load_keys

DATABASE_URL: Final = "database-url"


class SecretError(MhsError):
    """A secret is missing or cannot be had; the message names it, never its value."""


def keys_of(settings: Settings, *, write: bool = True) -> Keys:
    """Return the platform's keys. write: see `load_keys`; False where they are only looked at. Raises SecretError."""
    given = given_secrets(settings.secrets)
    elsewhere = kept_elsewhere(settings)
    missing = [name for name in KEY_NAMES if name not in given]
    if elsewhere and missing:
        raise SecretError(
            f"{elsewhere} lacks {', '.join(missing)}; `mhs secrets new` makes a whole set, "
            "but keep the vault and tokens of a platform that has run before"
        )
    try:
        return load_keys(settings.home / "keys", given, write=write)
    except ValueError as error:
        raise SecretError(f"a key is not of its form: {error}; `mhs secrets new` shows each one's") from None


def with_secrets(settings: Settings) -> Settings:
    """Return `settings` with the database's URL, where a folder or AWS Secrets Manager has it. Raises SecretError."""
    if settings.database_url is not None:
        return settings
    url = given_secrets(settings.secrets).get(DATABASE_URL)
    return settings if url is None else settings.model_copy(update={"database_url": SecretStr(url)})


def new_secrets() -> dict[str, str]:
    """Return a fresh set of every key, by name."""
    return {name: fresh_key(name).decode() for name in KEY_NAMES}


def given_secrets(settings: SecretSettings) -> dict[str, str]:
    """Return what is not in the home folder's own files, by name; the environment goes before all else."""
    found: dict[str, str] = {}
    if settings.aws_secret is not None:
        found |= _from_aws(settings.aws_secret, settings.aws_region)
    if settings.directory is not None:
        found |= _from_directory(settings.directory)
    for name in KEY_NAMES:
        value = getattr(settings, name.replace("-", "_"))
        if value is not None:
            found[name] = value.get_secret_value()
    return found


def kept_elsewhere(settings: Settings) -> str | None:
    """Say where all the keys are, when that is not the home folder."""
    if settings.secrets.directory is not None:
        return str(settings.secrets.directory)
    name = settings.secrets.aws_secret
    return f"secret {name} of AWS Secrets Manager" if name is not None else None


def _from_directory(folder: Path) -> dict[str, str]:
    found = {}
    try:
        present = {entry.name for entry in folder.iterdir()}
        for name in present & {*KEY_NAMES, DATABASE_URL}:
            found[name] = (folder / name).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SecretError(
            f"the secrets in {folder} cannot be read: {type(error).__name__}; see its mode and owner"
        ) from None
    return found


@cache
def _from_aws(secret: str, region: str | None) -> Mapping[str, str]:
    """Ask once per process: a changed secret counts from the next start."""
    return read_aws_secret(secret, region)


def read_aws_secret(secret: str, region: str | None, client: Callable[..., Any] | None = None) -> dict[str, str]:
    """Return a secret of AWS Secrets Manager that is a JSON object of texts. Raises SecretError."""
    import boto3  # takes long to import
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        made = (client or boto3.session.Session().client)("secretsmanager", region_name=region)
        text = made.get_secret_value(SecretId=secret).get("SecretString")
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "unknown error")
        raise SecretError(f"secret {secret} of AWS Secrets Manager cannot be read: {code}{_advice(code)}") from None
    except BotoCoreError as error:
        raise SecretError(
            f"AWS Secrets Manager cannot be asked for {secret}: {type(error).__name__}; "
            "see the node's role, MHS_SECRETS__AWS_REGION and the way to the service"
        ) from None
    try:
        found = json.loads(text or "")
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise SecretError(
            f"secret {secret} of AWS Secrets Manager is no JSON object of texts; `mhs secrets new` makes one"
        )
    return found


def _advice(code: str) -> str:
    if code == "ResourceNotFoundException":
        return "; there is none of this name in the region: create it, or mend MHS_SECRETS__AWS_SECRET"
    if code.startswith("AccessDenied"):
        return "; the role lacks secretsmanager:GetSecretValue on it (cluster/aws/iam/head.json)"
    return ""
