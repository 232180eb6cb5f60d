"""The registrar's actor: takes in pushed images, one after the other, on the head."""

from __future__ import annotations

import asyncio
import logging

import ray

from mhs_ray.actors.names import REGISTRAR, begin_soon, start_on_head
from mhs_ray.domain.settings import load_settings
from mhs_ray.platform.endpoints import Endpoints
from mhs_ray.platform.logs import configure_logging
from mhs_ray.services.core import build_core_patiently

log = logging.getLogger(__name__)


class RegistrarShell:
    """Asks the registry when it is told that something came, and now and then anyway: a notification can be lost."""

    def __init__(self) -> None:
        settings = load_settings()
        configure_logging(settings)
        self._core = build_core_patiently(settings, Endpoints.of(settings))
        self._every = settings.registry.reconcile_every.total_seconds()
        self._wake = asyncio.Event()
        self._hints: set[int] = set()
        self._main: asyncio.Task[None] | None = None
        begin_soon(REGISTRAR)

    async def begin(self) -> None:
        """Start to look; twice is as good as once."""
        if self._main is None or self._main.done():
            self._main = asyncio.create_task(self._run())

    async def pushed(self, image_ids: list[int]) -> None:
        """Look at these images now."""
        await self.begin()
        self._hints.update(image_ids)
        self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            hints, self._hints = sorted(self._hints), set()
            try:
                await asyncio.to_thread(self._core.images.reconcile, hints or None)
            except Exception:
                log.exception("pushed images could not be looked at; they are next time")
            if self._hints:
                continue
            try:
                await asyncio.wait_for(self._wake.wait(), self._every)
            except TimeoutError:
                continue


RegistrarActor = ray.remote(RegistrarShell)


def start_registrar() -> None:
    """Start the registrar unless it is there."""
    start_on_head(RegistrarActor, REGISTRAR, max_concurrency=100)
