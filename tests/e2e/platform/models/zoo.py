"""A model whose behaviour the runnable container's own variable BEHAVIOUR chooses: every way a container can end."""

import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


def post(body, expect=201):
    request = urllib.request.Request(
        "https://api.%s/api/v3/external/results/%s" % (os.environ["HOST"], os.environ["TASK_ID"]),
        data=json.dumps(body).encode(),
        headers={"Authorization": "Bearer " + os.environ["JWT_TOKEN"], "Content-Type": "application/json"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    print("posted:", status, text, flush=True)
    if status != expect:
        sys.exit(1)


def results(**report):
    return {"scanResults": [{"scanId": os.environ["SCAN_ID"], "results": report}]}


def wait_for_go():
    print("waiting", flush=True)
    while not Path("/tmp/go").exists():
        time.sleep(0.02)


behaviour = os.environ["BEHAVIOUR"]
if behaviour == "post":
    post(results(summary="fine"))
elif behaviour == "mark":
    ring = [[0, 0], [256, 0], [256, 256], [0, 256], [0, 0]]
    square = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"annotation_type": "tissue", "score": 0.5},
    }
    marked = results(summary="one square")
    marked["scanResults"][0]["geojson"] = {"type": "FeatureCollection", "features": [square]}
    post(marked)
elif behaviour == "silent":
    print("nothing to say")
elif behaviour == "invalid":
    feature = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {}}
    bad = results(summary=7)
    bad["scanResults"][0]["geojson"] = {"type": "FeatureCollection", "features": [feature]}
    post(bad, expect=422)
elif behaviour == "crash":

    def count_cells(image):
        raise ValueError("cannot count cells of " + image)

    count_cells("a slide")
elif behaviour == "exit-75":
    sys.exit(75)
elif behaviour == "hang":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print("hanging", flush=True)
    while True:
        time.sleep(60)
elif behaviour == "gated":
    wait_for_go()
    post(results(summary="after the wait"))
elif behaviour == "eat":
    wait_for_go()
    kept = []
    while True:
        kept.append(b"x" * (16 << 20))
elif behaviour == "chatty":
    for i in range(3000):
        print("line %d" % i)
        if i % 100 == 0:
            print("warning %d" % i, file=sys.stderr)
    for word in ("token " + os.environ["JWT_TOKEN"], "key " + os.environ["API_PASSWORD"], os.environ["SCAN_URL"]):
        print("careless", word)
    sys.stdout.flush()
    wait_for_go()
    for i in range(3000, 3010):
        print("line %d" % i)
    sys.stdout.write("no newline at the end")
    sys.stdout.flush()
    post(results(summary="chatty"))
elif behaviour == "env":
    own = {name: os.environ.get(name) for name in json.loads(os.environ["SHOW"])}
    post(results(names=sorted(os.environ), own=own))
elif behaviour == "zip":
    import io
    import zipfile

    with urllib.request.urlopen(os.environ["SCAN_URL_ZIP"]) as answer:
        packed = zipfile.ZipFile(io.BytesIO(answer.read()))
    with urllib.request.urlopen(os.environ["SCAN_URL"]) as answer:
        first = answer.read()
    files = {name: packed.read(name) for name in packed.namelist()}
    post(
        results(
            names=sorted(files),
            sizes=sorted(len(data) for data in files.values()),
            dicom=all(data[128:132] == b"DICM" for data in files.values()),
            first_is_inside=first in files.values(),
        )
    )
elif behaviour == "version":
    post(results(version=Path("/app/version").read_text().strip()))
else:
    sys.exit("no such behaviour: " + behaviour)
