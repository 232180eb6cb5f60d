"""What containers posted: as posted, as files, as tables, as geometries."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from mhs_ray.client import wire as w
from mhs_ray.client.calls import Calls
from mhs_ray.client.geometries import to_geodataframe
from mhs_ray.domain.errors import InvalidInputError

if TYPE_CHECKING:
    import geopandas
    import pyarrow as pa

_PIECE: Final = 1 << 20
_SPOOL: Final = 64 << 20


class ResultCalls(Calls):
    """What was found. Each call names a job or a task: a task has the results of all its scans."""

    async def job_results(self, job_id: int, *, geojson: bool = True) -> w.Results:
        """Return a job's results in the words of the contract. geojson: with the annotations."""
        return cast(w.Results, await self._get(_path(job_id, None), geojson=None if geojson else False))

    async def task_results(self, task_id: str, *, geojson: bool = True) -> w.Results:
        """Return the results of all scans of a task. geojson: with the annotations."""
        return cast(w.Results, await self._get(_path(None, task_id), geojson=None if geojson else False))

    async def save_results(
        self, kind: str, out: BinaryIO, *, job_id: int | None = None, task_id: str | None = None
    ) -> int:
        """Write results as ``json``, ``geojson`` or ``parquet``, streamed; returns the number of bytes."""
        size = 0
        async with self.http.stream(_path(job_id, task_id), params={"format": kind}) as body:
            async for piece in body.pieces(_PIECE):
                await self.http.wire.aside(out.write, piece)
                size += len(piece)
        return size

    async def results_table(self, *, job_id: int | None = None, task_id: str | None = None) -> pa.Table:
        """Return one row per scan (`mhs_ray.client.tables.RESULTS_SCHEMA`)."""
        from mhs_ray.client import tables  # pyarrow takes a while to import, and the command line does without it

        return tables.results_table(cast(w.Results, await self._get(_path(job_id, task_id), geojson=False)))

    async def features(self, *, job_id: int | None = None, task_id: str | None = None) -> pa.Table:
        """Return one row per annotation and per point, box, region and segment of a report.

        Columns: task, scan, job, annotation_type, class, name, color, score, geometry (WKB, level-0 pixels), bbox,
        properties (JSON).
        """
        from mhs_ray.client import tables

        with tempfile.SpooledTemporaryFile(max_size=_SPOOL) as spool:
            out = cast(BinaryIO, spool)
            await self.save_results("parquet", out, job_id=job_id, task_id=task_id)
            spool.seek(0)
            return await self.http.wire.aside(tables.features_table, out)

    async def geodataframe(self, *, job_id: int | None = None, task_id: str | None = None) -> geopandas.GeoDataFrame:
        """Return `features` as a GeoDataFrame. Raises MissingExtraError without GeoPandas (extra ``geo``)."""
        return to_geodataframe(await self.features(job_id=job_id, task_id=task_id))

    async def save_debug_file(self, job_id: int, out: BinaryIO, *, attempt: int | None = None) -> int:
        """Write what the container put to DEBUG_FILE_UPLOAD_URL, streamed; returns the number of bytes."""
        answer = await self.http.send("GET", f"/v1/jobs/{job_id}/debug", params={"attempt": attempt})
        size = 0
        async with self.http.get_signed(answer.headers["location"]) as body:
            async for piece in body.pieces(_PIECE):
                await self.http.wire.aside(out.write, piece)
                size += len(piece)
        return size


def _path(job_id: int | None, task_id: str | None) -> str:
    if (job_id is None) == (task_id is None):
        raise InvalidInputError.at("job_id, task_id", "give one of the two")
    return f"/v1/jobs/{job_id}/results" if job_id is not None else f"/v1/tasks/{task_id}/results"
