#!/usr/bin/env python3
# A laboratory's own container, standard library only, written against Techcyte's documentation.
# It knows nothing of the platform that happens to run it.
import base64
import binascii
import io
import json
import os
import ssl
import struct
import sys
import urllib.parse
import urllib.request
import zipfile
from urllib.error import HTTPError

TLS = ssl.create_default_context()


def log(*words):
    sys.stderr.write(" ".join(str(w) for w in words) + "\n")


class Techcyte:
    def __init__(self, environ):
        self.base = "https://api." + environ["HOST"] + "/api/v3"
        self.task = environ["TASK_ID"]
        self.token = environ["JWT_TOKEN"]

    def call(self, method, path, document=None):
        data = None if document is None else json.dumps(document).encode("utf-8")
        request = urllib.request.Request(self.base + path, data=data, method=method)
        request.add_header("Authorization", "Bearer " + self.token)
        request.add_header("Accept", "application/json")
        if data is not None:
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, context=TLS, timeout=60) as response:
            body = response.read()
            return response.status, (json.loads(body) if body else None)


def task_as_base64(task):
    try:
        decoded = base64.b64decode(task, validate=True).decode()
        if decoded.startswith("task:"):
            return task
    except (binascii.Error, UnicodeDecodeError):
        pass
    return base64.b64encode(("task:" + task).encode()).decode()


def read_range(url, first, last):
    request = urllib.request.Request(url, headers={"Range": "bytes=%d-%d" % (first, last)})
    with urllib.request.urlopen(request, context=TLS) as response:
        assert response.status == 206, response.status
        whole = int(response.headers["Content-Range"].rsplit("/", 1)[1])
        data = response.read()
    assert len(data) == last - first + 1, (len(data), first, last)
    return data, whole


def main():
    url = os.environ["SCAN_URL"]
    head, size = read_range(url, 0, 7)
    order = {b"II": "<", b"MM": ">"}[head[:2]]
    magic = struct.unpack(order + "H", head[2:4])[0]
    assert magic in (42, 43), "not a TIFF"
    middle, _ = read_range(url, size // 2, size // 2 + 4095)
    tail, _ = read_range(url, size - 1024, size - 1)
    log("slide of", size, "bytes, magic", magic)
    with urllib.request.urlopen(url, context=TLS) as whole:
        body = whole.read()
    assert len(body) == size and body[size // 2 : size // 2 + 4096] == middle and body.endswith(tail)
    print("read the whole slide", flush=True)

    scan = os.environ["SCAN_ID"]
    assert scan.isdigit()
    square = [[100, 100], [200, 100], [200, 200], [100, 200], [100, 100]]
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [square]},
            "properties": {"annotation_type": "mitosis", "score": 0.75},
        },
        {
            "type": "Feature",
            "bbox": [5, 6, 7, 8],
            "geometry": {"type": "Point", "coordinates": [6, 7]},
            "properties": {"annotation_type": "cell"},
        },
    ]
    techcyte = Techcyte(os.environ)
    path = "/external/results/" + urllib.parse.quote(task_as_base64(techcyte.task), safe="")
    status, answer = techcyte.call(
        "POST",
        path,
        {
            "caseResults": {"mitosisCount": 1},
            "scanResults": [
                {
                    "scanId": scan,
                    "results": {"summary": "one mitosis", "external_url": "https://lab.example/r/1", "bytes": size},
                    "geojson": {"type": "FeatureCollection", "features": features},
                    "qcFailReasons": [],
                    "workflow": {
                        "model_name": "Stdlib",
                        "provider": "A lab",
                        "ruo": True,
                        "report": {"type": "Basic", "results": [{"name": "count", "result": "1"}], "segments": []},
                    },
                }
            ],
        },
    )
    assert (status, answer) == (201, None), (status, answer)
    log("results accepted")

    status, answer = techcyte.call(
        "PATCH", "/external/case/" + task_as_base64(techcyte.task), {"triage_category": "urgent", "triage_score": 0.9}
    )
    assert (status, answer) == (204, None), (status, answer)
    status, answer = techcyte.call("PATCH", "/external/case/" + task_as_base64(techcyte.task), {})
    assert status == 204

    _, evaluations = techcyte.call("GET", "/external/case_evaluations/" + task_as_base64(techcyte.task))
    mine = [e for e in evaluations if e["details"].get("external_url") == "https://lab.example/r/1"]
    assert mine and mine[-1]["details"]["report"]["bytes"] == size and "workflow" not in mine[-1]["details"], (
        evaluations
    )
    log("evaluations:", len(evaluations))

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("debug/steps.txt", "range reads, post, patch, evaluations\n")
    put = urllib.request.Request(os.environ["DEBUG_FILE_UPLOAD_URL"], data=packed.getvalue(), method="PUT")
    with urllib.request.urlopen(put, context=TLS) as response:
        assert response.status in (200, 201, 204), response.status

    try:
        techcyte.call("POST", "/external/results/999999999", {"scanResults": []})
    except HTTPError as error:
        assert error.code in (401, 403, 404), error.code
    else:
        sys.exit("another task's results were taken")
    print("done")


if __name__ == "__main__":
    main()
