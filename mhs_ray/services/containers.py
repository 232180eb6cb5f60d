"""Runnable containers and case algorithms: the rules before a row is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from mhs_ray.domain.env import EnvVar, check_env
from mhs_ray.domain.errors import Fault, InvalidInputError, NotFoundError
from mhs_ray.domain.instances import INSTANCE_TYPES
from mhs_ray.domain.models import Algorithm, Container, Principal, Provider
from mhs_ray.services.names import clean_name
from mhs_ray.store.sql.containers import Algorithms, Containers
from mhs_ray.store.sql.images import Images


class ContainerService:
    """max_time_limit: the longest running time that a container may ask for."""

    def __init__(self, containers: Containers, images: Images, max_time_limit: timedelta) -> None:
        self.containers = containers
        self._images = images
        self._max = int(max_time_limit.total_seconds())

    def create(
        self,
        who: Principal,
        *,
        image_id: int,
        instance_type: str,
        name: str | None = None,
        env: Sequence[EnvVar] = (),
        time_limit_s: int | None = None,
        retry_exit_codes: Sequence[int] = (),
        max_model_retries: int = 0,
    ) -> Container:
        """Make a container of an uploaded image; without a name it takes the image's. Raises InvalidInputError."""
        values = {
            "image_id": image_id,
            "instance_type": instance_type,
            "time_limit_s": self._max if time_limit_s is None else time_limit_s,
            "retry_exit_codes": list(retry_exit_codes),
            "max_model_retries": max_model_retries,
        }
        self._check(values, env)
        if name is None or not name.strip():
            name = f"{self._image_name(who, image_id)} on {instance_type}"
        return self.containers.create(who.company_id, who.name, {**values, "name": clean_name(name)}, env)

    def update(
        self, who: Principal, container_id: int, values: Mapping[str, Any], env: Sequence[EnvVar] | None
    ) -> Container:
        """Change what `values` names. A secret variable without a value keeps the one it has."""
        values = dict(values)
        if "name" in values:
            values["name"] = clean_name(values["name"])
        self._check(values, env or ())
        return self.containers.update(who.company_id, container_id, values, env)

    def kept_secrets(self, who: Principal, container_id: int) -> Mapping[str, str]:
        """Return the secret variables of a container by name, for an update that leaves their values out."""
        return {v.name: v.value for v in self.containers.get(who.company_id, container_id).env if v.secret}

    def _image_name(self, who: Principal, image_id: int) -> str:
        try:
            return self._images.get(who.company_id, image_id).name
        except NotFoundError as error:
            raise InvalidInputError.at("$.image_id", str(error)) from None

    def _check(self, values: Mapping[str, Any], env: Sequence[EnvVar]) -> None:
        faults = check_env(env)
        kind = values.get("instance_type")
        if kind is not None and kind not in INSTANCE_TYPES:
            faults.append(Fault("$.instance_type", f"{str(kind)[:60]!r} is not one of {', '.join(INSTANCE_TYPES)}"))
        limit = values.get("time_limit_s")
        if limit is not None and not 1 <= limit <= self._max:
            faults.append(Fault("$.time_limit_s", f"{limit} is not within 1 and {self._max} seconds"))
        codes = values.get("retry_exit_codes") or ()
        if any(not 1 <= c <= 255 for c in codes):
            faults.append(Fault("$.retry_exit_codes", "exit codes are within 1 and 255"))
        if not 0 <= (values.get("max_model_retries") or 0) <= 10:
            faults.append(Fault("$.max_model_retries", "at most 10 retries"))
        if faults:
            raise InvalidInputError(faults)


class AlgorithmService:
    """Case algorithms."""

    def __init__(self, algorithms: Algorithms) -> None:
        self.algorithms = algorithms

    def create(self, who: Principal, name: str, provider: Provider, container_id: int | None) -> Algorithm:
        """Make one. Only the Model Hosting Service's have a container, and they need one. Raises InvalidInputError."""
        _check_provider(provider, container_id)
        return self.algorithms.create(who.company_id, who.name, clean_name(name), provider, container_id)

    def update(self, who: Principal, algorithm_id: int, values: Mapping[str, Any]) -> Algorithm:
        """Change what `values` names."""
        values = dict(values)
        if "name" in values:
            values["name"] = clean_name(values["name"])
        if "provider" in values or "container_id" in values:
            now = self.algorithms.get(who.company_id, algorithm_id)
            _check_provider(
                Provider(values.get("provider", now.provider)), values.get("container_id", now.container_id)
            )
        return self.algorithms.update(who.company_id, algorithm_id, values)


def _check_provider(provider: Provider, container_id: int | None) -> None:
    if provider is Provider.MHS and container_id is None:
        raise InvalidInputError.at(
            "$.container_id", f"a case algorithm of the {Provider.MHS} needs a runnable container"
        )
    if provider is not Provider.MHS and container_id is not None:
        raise InvalidInputError.at("$.container_id", f"only the {Provider.MHS} runs containers; leave it out")
