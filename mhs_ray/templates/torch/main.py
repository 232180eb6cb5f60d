"""A PyTorch model in a container: gets one slide, marks what is stained brown, posts its results, exits.

Replace `Segmenter` in model.py and what `process_image` makes of its classes. Everything around it (GPU check,
download, picture, results) is ready.

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

import numpy
import requests
from PIL import Image, ImageDraw

from contours import outlines, scaled
from model import CLASSES, MARGIN, MPP, Segmenter
from results_client import ResultsClient, ResultsError
from slide import open_slide, slide_suffix

SIDE = 512  # of a tile, in pixels at MPP
MIN_PIXELS = 30  # smaller areas are noise
MAX_REGIONS = 2000  # the largest ones are posted
GLASS = 232  # a tile whose mean is above this has no tissue
PICTURE_SIZE = 1024  # longest side of the visualisation, in pixels
DOWNLOAD_TRIES = 5


def process_image(image_path):
    """Return GeoJSON features in level-0 pixels of the slide, and numbers about the whole of it.

    The slide is read tile by tile at the model's resolution, with as much around each tile as the model looks at.
    """
    segmenter = Segmenter()
    print(f"Computing on {segmenter.device}")
    pixels_of = dict.fromkeys(CLASSES, 0)
    regions = []
    with open_slide(image_path) as slide:
        factor = MPP / (slide.mpp or MPP)  # level-0 pixels per pixel of the model
        for left, top, tile in tiles(slide, factor):
            if tile.mean() > GLASS:
                continue
            classes = segmenter.classify(tile)[MARGIN:-MARGIN, MARGIN:-MARGIN]
            for i, name in enumerate(CLASSES):
                pixels_of[name] += int((classes == i).sum())
            for ring, size in outlines(classes == CLASSES.index("positive"), MIN_PIXELS):
                regions.append((size, scaled(ring, factor, left, top)))
    regions = sorted(regions, key=lambda region: -region[0])[:MAX_REGIONS]
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"annotation_type": "positive", "area_um2": round(size * MPP**2, 1)},
        }
        for size, ring in regions
    ]
    print(f"Found {len(features)} positive regions")
    stained = pixels_of["positive"] + pixels_of["nucleus"]
    numbers = {
        "positive_area_um2": round(pixels_of["positive"] * MPP**2, 1),
        "nucleus_area_um2": round(pixels_of["nucleus"] * MPP**2, 1),
        "positive_percent": round(100 * pixels_of["positive"] / stained, 2) if stained else 0.0,
    }
    return features, numbers


def tiles(slide, factor):
    """Yield (left, top, pixels): the place of a tile in level-0 pixels, and its pixels with MARGIN more on each side."""
    level = max(i for i, d in enumerate(slide.downsamples) if d <= max(factor, 1) * 1.01)
    shrink = factor / slide.downsamples[level]  # pixels of the level per pixel of the model
    width, height = slide.dimensions
    step, whole = round(SIDE * factor), SIDE + 2 * MARGIN
    for top in range(0, height, step):
        for left in range(0, width, step):
            place = (round(left - MARGIN * factor), round(top - MARGIN * factor))
            # OpenSlide gives black where there is no slide; the net knows glass.
            region = read_on_white(slide, place, level, max(1, round(whole * shrink)))
            yield left, top, numpy.asarray(region.resize((whole, whole), Image.BILINEAR))


def read_on_white(slide, place, level, side):
    """Return a square region of a level, white where it reaches beyond the slide."""
    downsample = slide.downsamples[level]
    x0, y0 = max(place[0], 0), max(place[1], 0)
    x1 = min(place[0] + side * downsample, slide.dimensions[0])
    y1 = min(place[1] + side * downsample, slide.dimensions[1])
    size = (max(1, round((x1 - x0) / downsample)), max(1, round((y1 - y0) / downsample)))
    canvas = Image.new("RGB", (side, side), (255, 255, 255))
    at = (round((x0 - place[0]) / downsample), round((y0 - place[1]) / downsample))
    canvas.paste(slide.read_region((x0, y0), level, size), at)
    return canvas


def make_results(scan_id, features, numbers):
    """Return the body of POST /api/v3/external/results/{task_id}."""
    summary = f"{numbers['positive_percent']:g} % of what is stained is positive"
    scan = {
        "scanId": scan_id,
        "results": {"summary": summary, **numbers},
        "geojson": {"type": "FeatureCollection", "features": features},
        "workflow": {"model_name": "StainNet example", "provider": "mhs-ray template", "ruo": True},
    }
    return {"caseResults": numbers, "scanResults": [scan]}


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
