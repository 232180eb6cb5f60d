"""The Python client of the HTTP API.

::

    from mhs_ray.client import Client

    with Client("http://127.0.0.1:8080", client_id, client_secret) as mhs:
        scan = mhs.add_scan_upload(Path("slide.svs"))
        done = mhs.wait(mhs.submit(algorithm="Mitosis count", scan_ids=[scan["id"]])["job_ids"][0])
        cells = mhs.features(job_id=done["id"])

`AsyncClient` has the same methods, to be awaited.
"""

from mhs_ray.client.client import AsyncClient, Client, is_final
from mhs_ray.client.errors import ApiError, MissingExtraError, UnreachableError
from mhs_ray.client.geometries import to_geodataframe, to_shapely
from mhs_ray.client.wire import LogLine

__all__ = [
    "ApiError", "AsyncClient", "Client", "LogLine", "MissingExtraError", "UnreachableError", "is_final",
    "to_geodataframe", "to_shapely",
]  # fmt: skip
