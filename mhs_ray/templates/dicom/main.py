"""A model in a container that reads whole DICOM slides: every level of the series, from SCAN_URL_ZIP.

Replace `process_image`. Everything around it (GPU check, download, picture, results) is ready. Slides that are not
DICOM work too: they come by SCAN_URL as everywhere.

    python3 main.py                 as the platform runs it: configured by environment variables
    python3 main.py folder          on a folder of .dcm files of yours, or on one file: posts nothing
"""

import io
import json
import os
import shutil
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy
import requests
from PIL import Image, ImageDraw

from contours import outlines, scaled
from results_client import ResultsClient, ResultsError
from series import open_slide, slide_suffix

MASK_SIDE = 2048  # longest side of the picture in which tissue is looked for
MIN_SHARE = 0.0005  # of the slide: smaller pieces are dirt
PICTURE_SIZE = 1024  # longest side of the visualisation, in pixels
DOWNLOAD_TRIES = 5


def process_image(image_path):
    """Return GeoJSON features in level-0 pixels of the slide, and numbers about the whole of it.

    image_path: a folder with the files of a series, or one file. This example outlines the tissue, by its colour: no
    model. `slide.read_region((x, y), level, (width, height))` reads any level, a few frames at a time.
    """
    with open_slide(image_path) as slide:
        small = slide.thumbnail(MASK_SIDE)
        factor, mpp = slide.dimensions[0] / small.width, slide.mpp
        levels = len(slide.downsamples)
    colours = numpy.asarray(small, numpy.int16)
    mask = (colours.max(2) - colours.min(2) > 18) & (colours.mean(2) < 235)  # glass is grey and bright
    pieces = outlines(mask, max(4, int(MIN_SHARE * mask.size)))
    print(f"Found {len(pieces)} pieces of tissue on a slide of {levels} levels")
    unit = (factor * mpp / 1000) ** 2 if mpp else None  # mm² of a pixel of the mask
    features = []
    for ring, size in pieces:
        properties = {"annotation_type": "tissue"}
        if unit:
            properties["area_mm2"] = round(size * unit, 4)
        polygon = {"type": "Polygon", "coordinates": [scaled(ring, factor)]}
        features.append({"type": "Feature", "geometry": polygon, "properties": properties})
    numbers = {"pieces": len(pieces), "levels": levels}
    if unit:
        numbers["tissue_mm2"] = round(sum(size for _, size in pieces) * unit, 4)
    return features, numbers


def make_results(scan_id, features, numbers):
    """Return the body of POST /api/v3/external/results/{task_id}."""
    scan = {
        "scanId": scan_id,
        "results": {"summary": f"{numbers['pieces']} pieces of tissue", **numbers},
        "geojson": {"type": "FeatureCollection", "features": features},
    }
    return {"caseResults": numbers, "scanResults": [scan]}


def unpack(archive, folder):
    """Take the DICOM files out of a zip, by names of our own; return the folder."""
    series = folder / "series"
    series.mkdir()
    with zipfile.ZipFile(archive) as packed:
        entries = sorted((e for e in packed.infolist() if not e.is_dir()), key=lambda e: e.filename)
        for number, entry in enumerate(entries):
            with packed.open(entry) as source, (series / f"{number:04d}.dcm").open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
    archive.unlink()
    return series


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
        folder = writable_folder("/input")
        if os.environ.get("SCAN_URL_ZIP"):
            image_path = unpack(download(os.environ["SCAN_URL_ZIP"], folder), folder)
        else:
            image_path = download(os.environ["SCAN_URL"], folder)
    else:
        print("Set SCAN_URL (see README.md), or name a slide: python3 main.py slide.svs", file=sys.stderr)
        return 2
    print(f"Processing image: {image_path}")
    features, numbers = process_image(image_path)
    picture = writable_folder("/output") / "result.png"
    draw(image_path, features, picture)
    print(f"Visualization saved to {picture}")
    results = make_results(os.environ.get("SCAN_ID", "0"), features, numbers)
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
