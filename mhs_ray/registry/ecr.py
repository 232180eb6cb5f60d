"""The port ImageRegistry on Amazon ECR: two repositories a definition, credentials that open one repository.

Manifests and blobs go by the registry's own protocol, as with any registry, so the checks are the same ones. A push or
pull credential is ECR's password of a session of `role` whose policy names that repository alone.
"""

from __future__ import annotations

import base64
import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from mhs_ray.domain.errors import AdmissionError, RegistryError
from mhs_ray.domain.models import ImageRef
from mhs_ray.ports import Admission, PushAccess, RegistryCredential
from mhs_ray.registry.admission import AdmissionLimits, admit
from mhs_ray.registry.client import DistributionClient
from mhs_ray.registry.distribution import push_tag
from mhs_ray.registry.manifests import choose_platform, is_index
from mhs_ray.registry.promotion import RepositorySource, promote_manifest
from mhs_ray.registry.scanner import Scanner
from mhs_ray.registry.tokens import Access, quarantine_repository, trusted_repository

log = logging.getLogger(__name__)

_SESSION_S: Final = 3600  # AWS's most for a role that a role assumes
_RENEW_BEFORE: Final = timedelta(minutes=20)
_KEEP_UNTAGGED_DAYS: Final = 14
SEVERITIES: Final = ("INFORMATIONAL", "UNDEFINED", "LOW", "MEDIUM", "HIGH", "CRITICAL")

PULL_ACTIONS: Final = ("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer")
PUSH_ACTIONS: Final = (
    *PULL_ACTIONS, "ecr:CompleteLayerUpload", "ecr:InitiateLayerUpload", "ecr:PutImage", "ecr:UploadLayerPart",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Password:
    username: str
    password: str
    expires_at: datetime

    @property
    def basic(self) -> str:
        return base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class EcrRegistry:
    """Implements ImageRegistry. address: ``ACCOUNT.dkr.ecr.REGION.amazonaws.com``.

    role: ARN of what push and pull sessions are cut from. prefix: before the names of all repositories.
    max_severity: the worst that ECR's scan may find; None: it is not asked. client: boto3's, for tests.
    """

    def __init__(
        self,
        address: str,
        role: str,
        *,
        prefix: str = "",
        limits: AdmissionLimits | None = None,
        scanner: Scanner | None = None,
        max_severity: str | None = None,
        tls: bool = True,
        region: str | None = None,
        client: Callable[..., Any] | None = None,
    ) -> None:
        self.address, self._role, self._prefix, self._tls = address, role, prefix, tls
        self._limits, self._scanner, self._max_severity = limits or AdmissionLimits(), scanner, max_severity
        self._account, self._region = _parts(address, role, region)
        self._make = client or boto3.session.Session().client
        config = Config(retries={"mode": "standard", "max_attempts": 5}, connect_timeout=5, read_timeout=30)
        self._ecr: Any = self._make("ecr", region_name=self._region, config=config)
        self._sts: Any = self._make("sts", region_name=self._region, config=config)
        self._http = DistributionClient(address, self._own_password, tls=tls, scheme="Basic")
        self._passwords: dict[str, _Password] = {}
        self._lock = threading.Lock()

    def push_access(self, image_id: int, company_id: int, expires_at: datetime) -> PushAccess:
        """Return target and credential for pushing; the repository is made at the first time."""
        repository = self._quarantine(image_id)
        self._ensure(repository, "MUTABLE")
        password = self._session(f"mhs-push-{company_id}-{image_id}", repository, PUSH_ACTIONS)
        until = min(expires_at, password.expires_at)
        return PushAccess(
            self.address, repository, push_tag(image_id), password.username, password.password, until, tls=self._tls
        )

    def pushed(self, image_id: int) -> str | None:
        """Return the digest at the definition's push tag now."""
        return self._http.head_manifest(self._quarantine(image_id), push_tag(image_id))

    def admit(self, image_id: int, digest: str) -> Admission:
        """Check a quarantined image whole. ECR's own scan comes first: it is awaited, the reading is not repeated."""
        repository = self._quarantine(image_id)
        found = self._scanned(repository, digest) if self._max_severity else None
        admission = admit(RepositorySource(self._http, repository), digest, self._limits, self._scanner)
        return replace(admission, details={**admission.details, "scan": found}) if found is not None else admission

    def promote(self, image_id: int, digest: str, number: int) -> ImageRef:
        """Copy an admitted image to the trusted repository, whose tags nobody can move."""
        source, target = self._quarantine(image_id), self._trusted(image_id)
        self._ensure(target, "IMMUTABLE")
        if self._http.head_manifest(target, digest) != digest:  # an immutable tag cannot be put twice
            promote_manifest(self._http, source, target, digest, f"v{number}", self._limits, self._http.copy_blob)
        ref = ImageRef(self.address, target, digest)
        log.info("promoted %s as v%d", ref, number)
        return ref

    def pull_credential(self, image: ImageRef) -> RegistryCredential:
        """Return a login that reads this trusted repository, good for some time yet."""
        with self._lock:
            known = self._passwords.get(image.repository)
            if known is None or known.expires_at - datetime.now(UTC) < _RENEW_BEFORE:
                known = self._session("mhs-pull", image.repository, PULL_ACTIONS)
                # AWS says twelve hours, but nobody promises them beyond the session's one.
                until = min(known.expires_at, datetime.now(UTC) + timedelta(seconds=_SESSION_S))
                self._passwords[image.repository] = known = replace(known, expires_at=until)
        return RegistryCredential(known.username, known.password, tls=self._tls)

    def remove(self, image_id: int) -> None:
        """Delete both repositories with all that is in them."""
        for repository in (self._quarantine(image_id), self._trusted(image_id)):
            with _translated(
                f"delete repository {repository}", "ecr:DeleteRepository", ok="RepositoryNotFoundException"
            ):
                self._ecr.delete_repository(registryId=self._account, repositoryName=repository, force=True)

    def close(self) -> None:
        """Close idle connections."""
        self._http.close()

    def _quarantine(self, image_id: int) -> str:
        return self._prefix + quarantine_repository(image_id)

    def _trusted(self, image_id: int) -> str:
        return self._prefix + trusted_repository(image_id)

    def _arn(self, repository: str) -> str:
        partition = self._role.split(":", 2)[1]
        return f"arn:{partition}:ecr:{self._region}:{self._account}:repository/{repository}"

    def _ensure(self, repository: str, mutability: str) -> None:
        with _translated(
            f"make repository {repository}", "ecr:CreateRepository", ok="RepositoryAlreadyExistsException"
        ):
            self._ecr.create_repository(
                registryId=self._account,
                repositoryName=repository,
                imageTagMutability=mutability,
                imageScanningConfiguration={"scanOnPush": True},
            )
            if mutability == "MUTABLE":  # what a later push took the tag from
                self._ecr.put_lifecycle_policy(
                    registryId=self._account, repositoryName=repository, lifecyclePolicyText=_untagged_expire()
                )

    def _own_password(self, _access: Sequence[Access]) -> str:
        """Return the platform's own login; IAM says what it may do."""
        with self._lock:
            known = self._passwords.get("")
            if known is None or known.expires_at - datetime.now(UTC) < _RENEW_BEFORE:
                self._passwords[""] = known = _password(self._ecr)
        return known.basic

    def _session(self, name: str, repository: str, actions: Sequence[str]) -> _Password:
        """Return a login that can do `actions` on one repository and nothing else."""
        policy = {
            "Version": "2012-10-17",
            "Statement": [
                {"Effect": "Allow", "Action": "ecr:GetAuthorizationToken", "Resource": "*"},
                {"Effect": "Allow", "Action": list(actions), "Resource": self._arn(repository)},
            ],
        }
        with _translated(f"become {self._role}", "sts:AssumeRole"):
            given = self._sts.assume_role(
                RoleArn=self._role, RoleSessionName=name[:64], Policy=json.dumps(policy), DurationSeconds=_SESSION_S
            )["Credentials"]
        narrow = self._make(
            "ecr", region_name=self._region, aws_access_key_id=given["AccessKeyId"],
            aws_secret_access_key=given["SecretAccessKey"], aws_session_token=given["SessionToken"],
        )  # fmt: skip
        return _password(narrow)

    def _scanned(self, repository: str, digest: str) -> dict[str, int]:
        """Return how many findings of each severity ECR's scan has.

        Raises AdmissionError when one is too severe, RegistryError while the scan is not done: it is asked again.
        """
        manifest = self._http.manifest(repository, digest)
        if manifest is not None and is_index(manifest.media_type, manifest.body):
            digest = choose_platform(manifest.body)  # an index is not scanned, its images are
        asked = {"registryId": self._account, "repositoryName": repository, "imageId": {"imageDigest": digest}}
        try:
            with _translated(f"read the scan of {repository}", "ecr:DescribeImageScanFindings", ok=None):
                answer = self._ecr.describe_image_scan_findings(**asked)
        except _ScanMissingError:
            with _translated(f"scan {repository}", "ecr:StartImageScan", ok="LimitExceededException"):
                self._ecr.start_image_scan(**asked)
            raise RegistryError(
                f"ECR was asked to scan {repository}@{digest}; its findings are looked at later"
            ) from None
        status = answer.get("imageScanStatus", {}).get("status", "UNKNOWN")
        if status in {"IN_PROGRESS", "PENDING"}:
            raise RegistryError(f"ECR still scans {repository}@{digest}; its findings are looked at later")
        if status not in {"COMPLETE", "ACTIVE"}:
            reason = answer.get("imageScanStatus", {}).get("description", status)
            raise AdmissionError(f"ECR could not scan it: {reason}", "Build it from a base image that ECR knows")
        findings = answer.get("imageScanFindings", {})
        counts: dict[str, int] = dict(findings.get("findingSeverityCounts", {}))
        assert self._max_severity is not None
        worse = SEVERITIES[SEVERITIES.index(self._max_severity) + 1 :]
        if any(counts.get(severity) for severity in worse):
            told = ", ".join(f"{counts[s]} {s.lower()}" for s in reversed(worse) if counts.get(s))
            names = [f["name"] for f in findings.get("findings", ()) if f.get("severity") in worse and "name" in f]
            first = f", such as {', '.join(names[:3])}" if names else ""
            raise AdmissionError(
                f"ECR's scan found vulnerabilities worse than {self._max_severity.lower()}: {told}{first}",
                "Update the base image and its packages, build it again and push it",
            )
        return counts


class _ScanMissingError(Exception):
    pass


def _parts(address: str, role: str, region: str | None) -> tuple[str, str | None]:
    """Return (account, region) that an ECR address names; another address has the role's account."""
    words = address.split(".")
    if len(words) >= 6 and words[1:3] == ["dkr", "ecr"]:
        return words[0], words[3]
    return role.split(":")[4], region


def _password(ecr: Any) -> _Password:
    with _translated("get an authorization token", "ecr:GetAuthorizationToken"):
        (data,) = ecr.get_authorization_token()["authorizationData"]
    username, _, password = base64.b64decode(data["authorizationToken"]).decode().partition(":")
    return _Password(username, password, data["expiresAt"].astimezone(UTC))


def _untagged_expire() -> str:
    rule = {
        "rulePriority": 1,
        "description": "pushes that a later one replaced",
        "selection": {
            "tagStatus": "untagged", "countType": "sinceImagePushed", "countUnit": "days",
            "countNumber": _KEEP_UNTAGGED_DAYS,
        },
        "action": {"type": "expire"},
    }  # fmt: skip
    return json.dumps({"rules": [rule]})


@contextmanager
def _translated(doing: str, action: str, ok: str | None = "") -> Iterator[None]:
    """Turn AWS's errors into ours. ok: the code of one that is none; None: a missing scan is told apart."""
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "unknown error"))
        if code == ok:
            return
        if ok is None and code == "ScanNotFoundException":
            raise _ScanMissingError from None
        advice = ""
        if "AccessDenied" in code or code.startswith("Unauthorized"):
            advice = f"; the role lacks {action} (cluster/aws/iam/)"
        elif code in {"LimitExceededException", "ThrottlingException", "TooManyRequestsException"}:
            advice = "; a quota of the account: ask AWS for more, it is tried again meanwhile"
        raise RegistryError(f"Amazon ECR refused to {doing}: {code}{advice}") from None
    except BotoCoreError as error:
        # The class alone: the text of some of these holds a URL with its query.
        raise RegistryError(
            f"could not {doing}: {type(error).__name__}; see the role and the way to AWS from here"
        ) from None
