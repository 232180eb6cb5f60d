"""Benchmarks: each is a module here with a ``BENCHMARK``, found by `benchmarks`; ``mhs bench NAME`` runs it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mhs_ray.domain.settings import Settings

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark. measures: in a sentence, with the peer. run: told where to say progress; returns a JSON object."""

    name: str
    measures: str
    run: Callable[[Settings, Say], dict[str, Any]]


def benchmarks() -> dict[str, Benchmark]:
    """Return every benchmark by its name: the `BENCHMARK` of each module of this package that has one."""
    found: dict[str, Benchmark] = {}
    for module in pkgutil.iter_modules(__path__):
        benchmark = getattr(importlib.import_module(f"{__name__}.{module.name}"), "BENCHMARK", None)
        if isinstance(benchmark, Benchmark):
            found[benchmark.name] = benchmark
    return dict(sorted(found.items()))
