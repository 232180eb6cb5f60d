"""Usage as a Parquet file, for whoever writes the bills."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from mhs_ray.store.sql.usage import DayUsage

_SCHEMA = pa.schema(
    [
        pa.field("day", pa.date32(), nullable=False, metadata={"of": "the attempts' end, UTC"}),
        pa.field("company_id", pa.int64(), nullable=False),
        pa.field("company", pa.string(), nullable=False),
        pa.field("instance_type", pa.string(), nullable=False),
        pa.field("attempts", pa.int64(), nullable=False),
        pa.field("jobs", pa.int64(), nullable=False),
        pa.field("failed", pa.int64(), nullable=False),
        pa.field("gpu_s", pa.float64(), nullable=False, metadata={"unit": "s"}),
        pa.field("platform_gpu_s", pa.float64(), nullable=False, metadata={"unit": "s"}),
    ]
)
assert _SCHEMA.names == [f.name for f in fields(DayUsage)]


def write_usage(rows: Sequence[DayUsage], out: BinaryIO) -> None:
    """Write one Parquet row per day, company and instance type."""
    pq.write_table(pa.Table.from_pylist([asdict(r) for r in rows], _SCHEMA), out, compression="zstd")
