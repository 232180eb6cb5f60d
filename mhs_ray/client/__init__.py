"""The Python client of the HTTP API.

::

    from mhs_ray.client import Client

    with Client("http://127.0.0.1:8080", client_id, client_secret) as mhs:
        scan = mhs.add_scan_upload(Path("slide.svs"))
        done = mhs.wait(mhs.submit(algorithm="Mitosis count", scan_ids=[scan["id"]])["job_ids"][0])
"""

from mhs_ray.client.client import Client
from mhs_ray.client.errors import ApiError, UnreachableError

__all__ = ["ApiError", "Client", "UnreachableError"]
