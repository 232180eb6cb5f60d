"""A model in a container that gets a slide's tiles from the platform: decoded, at its own size and resolution.

Replace `score_tiles`. Give the runnable container the variable MHS_TILES, for example: size=256 mpp=0.5 tissue
The slide is not downloaded: tiles come as fast as the node decodes them, and the job's page shows the progress.

    python3 main.py                 as the platform runs it
    python3 main.py slide.svs       on a file of yours, through OpenSlide: posts nothing
"""

import json
import os
import sys

import numpy

from mhs_tiles import TilesError, open_tiles
from results_client import ResultsClient, ResultsError

BEST = 20  # how many tiles are marked


def score_tiles(pixels):
    """Return a score for each tile: replace it with your model. pixels: uint8 (count, height, width, 3), RGB."""
    return pixels.mean(axis=(1, 2)).std(axis=1)  # how coloured they are


def squares(found, side):
    """Return GeoJSON features of (score, x, y) in level-0 pixels."""
    features = []
    for score, x, y in found:
        ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"annotation_type": "tile", "name": f"Score {score:.2f}", "score": score},
            }
        )
    return features


def tiles_of_file(path, side=256):
    """Yield (pixels, x, y) of a file of yours, 16 tiles at a time, level 0."""
    from slide import open_slide

    with open_slide(path) as slide:
        width, height = slide.dimensions
        places = [(x, y) for y in range(0, height, side) for x in range(0, width, side)]
        for at in range(0, len(places), 16):
            some = places[at : at + 16]
            yield (
                numpy.stack([numpy.asarray(slide.read_region(place, 0, (side, side))) for place in some]),
                [x for x, _ in some],
                [y for _, y in some],
            )


def best_of(batches):
    """Return the BEST tiles as (score, x, y), the best first, and how many there were."""
    found, count = [], 0
    for pixels, xs, ys in batches:
        scores = score_tiles(pixels)
        found += [(float(s), int(x), int(y)) for s, x, y in zip(scores, xs, ys)]
        found = sorted(found, reverse=True)[:BEST]
        count += len(pixels)
    return found, count


def main(arguments):
    """Run once; return the exit code."""
    if arguments:
        side = 256
        found, count = best_of(tiles_of_file(arguments[0], side))
    else:
        try:
            with open_tiles() as feed:
                plan = feed.plan
                print(f"Reading {plan['tiles']} tiles of {plan['width']} x {plan['height']} at {plan['mpp']} microns")
                side = round(plan["width"] * plan["factor"] * plan["downsample"])
                found, count = best_of((b.pixels, b.x, b.y) for b in feed)
        except TilesError as error:
            print(f"No tiles: {error}", file=sys.stderr)
            return 2
    print(f"Scored {count} tiles")
    features = squares(found, side)
    results = {
        "caseResults": {"tiles": count},
        "scanResults": [
            {
                "scanId": os.environ.get("SCAN_ID", "0"),
                "geojson": {"type": "FeatureCollection", "features": features},
            }
        ],
    }
    print(f"Results JSON: {json.dumps(results)}")
    if arguments:
        return 0
    try:
        ResultsClient.from_env().post_results(results)
    except ResultsError as error:
        print(f"Posting the results failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    sys.exit(main(sys.argv[1:]))
