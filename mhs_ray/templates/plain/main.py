"""A model in a container: gets one slide, computes, posts its results, exits.

Replace `process_image`. Everything around it (GPU check, download, picture, results) is ready.

    python3 main.py                 as the platform runs it: configured by environment variables
    python3 main.py slide.svs       on a file of yours: posts nothing
"""

import io
import json
import os
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import requests
from PIL import Image, ImageDraw

from results_client import ResultsClient, ResultsError
from slide import open_slide, slide_suffix

PICTURE_SIZE = 1024  # longest side of the visualisation, in pixels
DOWNLOAD_TRIES = 5


def process_image(image_path):
    """Return what your model finds: a list of GeoJSON features in level-0 pixels of the slide.

    Each feature needs properties.annotation_type, a string. This example marks four squares and
    looks at no pixel: replace it with your model. `open_slide` gives you pixels:
        slide.dimensions, slide.read_region((x, y), level, (width, height)), slide.thumbnail(size)
    """
    with open_slide(image_path) as slide:
        width, height = slide.dimensions
    half = max(1, min(width, height) // 16)
    squares = []
    for row in (1, 2):
        for column in (1, 2):
            x, y = width * column // 3, height * row // 3
            left, top, right, bottom = x - half, y - half, x + half, y + half
            ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
            squares.append(
                {
                    "type": "Feature",
                    "geometry": {"type": "Polygon", "coordinates": [ring]},
                    "properties": {"annotation_type": "mitosis", "name": f"Fake mitosis {len(squares) + 1}"},
                }
            )
    print(f"Generated {len(squares)} fake annotations")
    return squares


def make_results(scan_id, features):
    """Return the body of POST /api/v3/external/results/{task_id}."""
    return {
        "caseResults": {"mitosisCount": len(features)},
        "scanResults": [{"scanId": scan_id, "geojson": {"type": "FeatureCollection", "features": features}}],
    }


def check_compute(size=1000):
    """Say what we compute on, and that it works: a matrix product by PyTorch, or NumPy where there is no PyTorch."""
    try:
        import torch
    except ImportError:
        import numpy

        print("CUDA is not available: PyTorch is not installed. Falling back to the CPU, with NumPy.")
        random = numpy.random.default_rng()
        a, b = (random.standard_normal((size, size), dtype="float32") for _ in range(2))
        started = time.perf_counter()
        product = a @ b
    else:
        if torch.cuda.is_available():
            device = "cuda"
            print(f"CUDA is available! Using GPU: {torch.cuda.get_device_name(0)}")
        else:
            device = "cpu"
            print("CUDA is not available. Falling back to the CPU.")
        a, b = (torch.randn(size, size, device=device) for _ in range(2))
        started = time.perf_counter()
        product = torch.matmul(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
    print(f"Matrix multiplication ({size}x{size}) completed in {time.perf_counter() - started:.4f} seconds")
    print(f"Result sample: {float(product[0, 0])}")


def writable_folder(wanted):
    """Return `wanted`, or a folder of the same name under the temporary one where it cannot be written."""
    for folder in (Path(wanted), Path(tempfile.gettempdir()) / Path(wanted).name):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    raise SystemExit(f"Neither {wanted} nor {tempfile.gettempdir()} can be written.")


def download(url, folder):
    """Fetch the slide, going on where a connection broke; return its path, named by what it is."""
    part = folder / "image.part"
    got = total = 0
    reason = "nothing came"
    with part.open("wb") as out:
        for attempt in range(DOWNLOAD_TRIES):
            if attempt:
                time.sleep(min(2**attempt, 10))
            try:
                headers = {"Accept-Encoding": "identity"}
                if got:
                    headers["Range"] = f"bytes={got}-"
                with requests.get(url, stream=True, timeout=(10, 60), headers=headers) as answer:
                    if answer.status_code >= 500:
                        reason = f"HTTP {answer.status_code}"
                        continue
                    if answer.status_code >= 400:
                        # 403: the URL has expired or is wrong. Trying again changes nothing.
                        raise SystemExit(f"Could not download the slide: HTTP {answer.status_code} {answer.reason}")
                    if answer.status_code != 206:
                        got = 0
                    out.seek(got)
                    out.truncate()
                    total = got + int(answer.headers.get("Content-Length", 0))
                    for piece in answer.iter_content(1 << 20):
                        out.write(piece)
                        got += len(piece)
                if got >= total:
                    break
                reason = f"the connection ended at byte {got} of {total}"
            except requests.RequestException as error:
                reason = type(error).__name__  # not its text: that holds the URL and so its signature
        else:
            raise SystemExit(f"Could not download the slide after {DOWNLOAD_TRIES} tries: {reason}")
    # The URL has no useful extension: what it is, its bytes tell.
    path = folder / f"image{slide_suffix(part)}"
    part.replace(path)
    return path


def draw(image_path, features, path):
    """Save the slide, small, with the features as red outlines."""
    with open_slide(image_path) as slide:
        width, height = slide.dimensions
        picture = slide.thumbnail(PICTURE_SIZE)
    drawing = ImageDraw.Draw(picture)
    scale_x, scale_y = picture.width / width, picture.height / height
    for feature in features:
        if feature["geometry"]["type"] == "Polygon":
            for ring in feature["geometry"]["coordinates"]:
                points = [(x * scale_x, y * scale_y) for x, y in ring]
                drawing.line(points, fill=(255, 0, 0), width=max(1, picture.width // 256), joint="curve")
    picture.save(path)


def upload_debug_files(url, files):
    """Put one zip of files where people find it at the job. Its failure fails nothing."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    try:
        requests.put(url, data=body.getvalue(), timeout=(10, 120)).raise_for_status()
    except requests.RequestException as error:
        print(f"The debug files could not be uploaded: {type(error).__name__}", file=sys.stderr)


def main(arguments):
    """Run once; return the exit code."""
    check_compute()
    if arguments:
        image_path = Path(arguments[0])
    elif os.environ.get("SCAN_URL"):
        image_path = download(os.environ["SCAN_URL"], writable_folder("/input"))
    else:
        print("Set SCAN_URL (see README.md), or name a slide: python3 main.py slide.svs", file=sys.stderr)
        return 2
    print(f"Processing image: {image_path}")
    features = process_image(image_path)
    picture = writable_folder("/output") / "result.png"
    draw(image_path, features, picture)
    print(f"Visualization saved to {picture}")
    results = make_results(os.environ.get("SCAN_ID", "0"), features)
    print(f"Results JSON: {json.dumps(results)}")
    if arguments:
        return 0
    code = 0
    try:
        ResultsClient.from_env().post_results(results)
    except ResultsError as error:
        # The JSON is in the log above. An exit code of 0 would say that all is well.
        print(f"Posting the results failed: {error}", file=sys.stderr)
        code = 1
    if os.environ.get("DEBUG_FILE_UPLOAD_URL"):
        files = {"result.png": picture.read_bytes(), "results.json": json.dumps(results, indent=1)}
        upload_debug_files(os.environ["DEBUG_FILE_UPLOAD_URL"], files)
    return code


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # lines show while we run
    sys.exit(main(sys.argv[1:]))
