"""The platform, images, runnable containers and case algorithms."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, cast

from mhs_ray.client import wire as w
from mhs_ray.client.calls import Calls
from mhs_ray.client.errors import ApiError
from mhs_ray.domain.models import ImageStatus


class CatalogCalls(Calls):
    """What can be run."""

    async def health(self) -> dict[str, Any]:
        """Return `ready` and the state of each part, also when it is not ready."""
        try:
            return dict((await self.http.send("GET", "/readyz", repeatable=False)).json())
        except ApiError as error:
            if "parts" in error.problem:
                return error.problem
            raise

    async def instance_types(self) -> list[w.InstanceType]:
        """Return what a container can ask for."""
        return list(await self._get("/v1/instance-types"))

    # ---- images

    def images(
        self, limit: int | None = None, *, name: str | None = None, status: str | None = None
    ) -> AsyncIterator[w.Image]:
        """Yield image definitions, newest first. name: part of it."""
        return self._pages("/v1/images", limit, name=name, status=status)

    async def image(self, image_id: int) -> w.Image:
        """Return one image definition."""
        return cast(w.Image, await self._get(f"/v1/images/{image_id}"))

    async def create_image(self, name: str) -> w.Image:
        """Make an image definition."""
        return cast(w.Image, await self._post("/v1/images", {"name": name}))

    async def rename_image(self, image_id: int, name: str) -> w.Image:
        """Rename an image definition."""
        return cast(w.Image, await self._patch(f"/v1/images/{image_id}", {"name": name}))

    async def delete_image(self, image_id: int) -> None:
        """Delete an image definition that nothing uses."""
        await self._delete(f"/v1/images/{image_id}")

    async def image_versions(self, image_id: int) -> list[w.ImageVersion]:
        """Return its versions, newest first."""
        return list(await self._get(f"/v1/images/{image_id}/versions"))

    async def push_instructions(self, image_id: int) -> w.PushInstructions:
        """Return where and how to push, with a fresh credential."""
        return cast(w.PushInstructions, await self._get(f"/v1/images/{image_id}/push-instructions"))

    async def wait_for_image(
        self,
        before: w.Image,
        digest: str | None = None,
        *,
        timeout_s: float = 900.0,
        on_status: Callable[[str], None] = lambda _status: None,
    ) -> w.Image:
        """Return the image once a push was taken in or refused.

        before: the image as it was before the push. digest: of what was pushed, if known. on_status: told of each new
        status. A push of what is known already changes nothing: after 40 s without change the image is returned as is.
        """
        began = time.monotonic()
        told = before["status"]
        while True:
            image = await self.image(before["id"])
            if image["status"] != told:
                told = image["status"]
                on_status(told)
            settled = image["status"] in {ImageStatus.UPLOADED, ImageStatus.FAILED}
            current = image["current"]["digest"] if image["current"] else None
            known = image["status"] == ImageStatus.UPLOADED and digest is not None and current == digest
            waited = time.monotonic() - began
            if settled and (known or image["updated_at"] != before["updated_at"] or waited > 40):
                return image
            if waited > timeout_s:
                detail = f"image {image['id']} is still {image['status']} {timeout_s:.0f} s after the push"
                raise ApiError(504, {"type": "/problems/timeout", "title": "No end in time", "detail": detail})
            await self.pause()

    # ---- containers

    def containers(
        self, limit: int | None = None, *, name: str | None = None, image_id: int | None = None
    ) -> AsyncIterator[w.Container]:
        """Yield runnable containers, newest first. name: part of it."""
        return self._pages("/v1/containers", limit, name=name, image_id=image_id)

    async def container(self, container_id: int) -> w.Container:
        """Return one runnable container."""
        return cast(w.Container, await self._get(f"/v1/containers/{container_id}"))

    async def create_container(self, body: Mapping[str, Any]) -> w.Container:
        """Make a runnable container. body: `ContainerIn` of the HTTP API."""
        return cast(w.Container, await self._post("/v1/containers", dict(body)))

    async def update_container(self, container_id: int, body: Mapping[str, Any]) -> w.Container:
        """Change what `body` names; `env` replaces all variables."""
        return cast(w.Container, await self._patch(f"/v1/containers/{container_id}", body))

    async def delete_container(self, container_id: int) -> None:
        """Delete a runnable container that no case algorithm uses."""
        await self._delete(f"/v1/containers/{container_id}")

    # ---- case algorithms

    def algorithms(self, limit: int | None = None, *, name: str | None = None) -> AsyncIterator[w.Algorithm]:
        """Yield case algorithms, newest first. name: part of it."""
        return self._pages("/v1/algorithms", limit, name=name)

    async def algorithm(self, algorithm_id: int) -> w.Algorithm:
        """Return one case algorithm."""
        return cast(w.Algorithm, await self._get(f"/v1/algorithms/{algorithm_id}"))

    async def create_algorithm(self, body: Mapping[str, Any]) -> w.Algorithm:
        """Make a case algorithm. body: `AlgorithmIn` of the HTTP API."""
        return cast(w.Algorithm, await self._post("/v1/algorithms", dict(body)))

    async def update_algorithm(self, algorithm_id: int, body: Mapping[str, Any]) -> w.Algorithm:
        """Change what `body` names."""
        return cast(w.Algorithm, await self._patch(f"/v1/algorithms/{algorithm_id}", body))

    async def delete_algorithm(self, algorithm_id: int) -> None:
        """Delete a case algorithm; its tasks and jobs stay."""
        await self._delete(f"/v1/algorithms/{algorithm_id}")
