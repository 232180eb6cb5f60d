"""``mhs compare``: what a new version of a container changes, on the same slides."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.text import Text

from mhs_ray.cli import output, story, trial
from mhs_ray.cli.command import CommandFailed
from mhs_ray.cli.connect import connect
from mhs_ray.cli.signals import ended_by_signals
from mhs_ray.client import Client
from mhs_ray.domain.errors import InvalidInputError, SlideError
from mhs_ray.domain.settings import load_settings
from mhs_ray.local.exits import DIFFERENT

if TYPE_CHECKING:
    from mhs_ray.compare.sides import Slides

_KINDS = ("jobs", "task", "container", "file", "image")
_SIDE = "IMAGE, image:TAG, jobs:1,2, task:ID, container:ID or file:results.json"
Percent = Annotated[float | None, typer.Option(metavar="PERCENT", min=0)]


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help=f"the one to compare with: {_SIDE}")],
    second: Annotated[str, typer.Argument(metavar="B", help="the new one, written like A")],
    scan: Annotated[
        list[str], typer.Option(metavar="SLIDE", help="images: file or URL; containers: a scan's id; can be repeated")
    ] = [],  # noqa: B006
    demo_slide: Annotated[bool, typer.Option("--demo-slide", help="images: a slide made of real tissue")] = False,
    env: trial.EnvOption = [],  # noqa: B006
    instance_type: trial.TypeOption = "g4dn.xlarge",
    gpus: trial.GpuOption = "auto",
    min_iou: Annotated[float, typer.Option(help="areas that overlap so much are the same", min=0, max=1)] = 0.5,
    max_distance: Annotated[float, typer.Option(help="points so near are the same, level-0 pixels", min=0)] = 16.0,
    max_count_change: Percent = None,
    max_area_change: Percent = None,
    max_value_change: Percent = None,
    min_f1: Annotated[float | None, typer.Option(help="of matched annotations, per slide", min=0, max=1)] = None,
    identical: Annotated[bool, typer.Option("--identical", help="allow no difference at all")] = False,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="draw both over each slide")] = True,
    folder: Annotated[Path, typer.Option("--output", "-o", help="where report and pictures go")] = Path(
        "mhs-compare-output"
    ),
) -> None:
    """Compare two versions of a container on the same slides: counts, areas, classes, matched annotations, values.

    Images of this machine run here as by `mhs test`; containers of the platform run there; ended jobs, tasks and files
    are taken as they are. Writes `report.html`, `differences.json` and a picture per slide.

    Example: mhs compare my-model:v1 my-model:v2 --scan a.svs --scan b.svs --min-f1 0.95

    Example: mhs compare jobs:11,12 jobs:21,22 --max-count-change 5

    Exit codes: 0 within what is allowed · 9 the difference is more, or one side failed on a slide · 1 they could not be
    compared
    """
    from mhs_ray.compare.differences import Limits, Rules, faults_of
    from mhs_ray.compare.differences import compare as difference_of
    from mhs_ray.compare.report import write_page
    from mhs_ray.compare.sides import paired

    kinds = [_kind(text) for text in (first, second)]
    options = {"instance_type": instance_type, "gpus": gpus}
    a, b = _sides(kinds, scan, demo_slide, env, folder, options)
    limits = Limits(max_count_change, max_area_change, max_value_change, min_f1, identical)
    document: dict[str, Any] = {"a": first, "b": second, "slides": [], "faults": []}
    drawn = {}
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, one, other, slide) in enumerate(paired(a, b), 1):
        found = difference_of(name, one, other, Rules(min_iou, max_distance))
        document["slides"].append(found.document)
        document["faults"] += faults_of(found.document, limits)
        if pictures and found.document["compared"]:
            drawn[name] = _picture(slide, one.features(), other.features(), found)
            drawn[name].save(folder / f"slide-{number}.png")
    document["report"] = str(folder / "report.html")
    (folder / "differences.json").write_text(json.dumps(document, ensure_ascii=False, indent=1))
    write_page(folder / "report.html", document, drawn)
    output.emit(document, _show)
    if document["faults"]:
        raise CommandFailed(DIFFERENT)


def _kind(text: str) -> tuple[str, str]:
    kind, colon, rest = text.partition(":")
    return (kind, rest) if colon and kind in _KINDS and rest else ("image", text)


def _sides(
    kinds: Sequence[tuple[str, str]], scan: Sequence[str], demo_slide: bool, env: Sequence[str], folder: Path,
    options: dict[str, Any],
) -> tuple[Slides, Slides]:  # fmt: skip
    runs = [kind for kind, _ in kinds if kind in ("image", "container")]
    if bool(scan or demo_slide) != bool(runs) or len(set(runs)) > 1:
        raise InvalidInputError.at(
            "--scan", "name the slides for two images, or for two containers; jobs, tasks and files have their own"
        )
    if "image" in runs:
        return _images(kinds, scan, demo_slide, env, folder, options)
    if env:
        raise InvalidInputError.at("--env", "is for images of this machine; containers have their own variables")
    if all(kind == "file" for kind, _ in kinds):
        return _file(kinds[0][1]), _file(kinds[1][1])
    with connect() as mhs:
        a, b = (_of_platform(mhs, kind, rest, scan) for kind, rest in kinds)
    return a, b


def _images(
    kinds: Sequence[tuple[str, str]], scan: Sequence[str], demo_slide: bool, env: Sequence[str], folder: Path,
    options: dict[str, Any],
) -> tuple[Slides, Slides]:  # fmt: skip
    from mhs_ray.compare.differences import Side
    from mhs_ray.compare.sides import Slides

    settings = load_settings()
    slides = [trial.existing(s) for s in scan] + ([str(trial.demo(settings))] if demo_slide else [])
    names = _names(slides)
    variables = trial.checked_env(env)
    made = []
    with ended_by_signals(), trial.standing(settings) as here:
        for letter, (kind, rest) in zip("ab", kinds, strict=True):
            if kind != "image":
                made.append(_file(rest))
                continue
            sides = {}
            for number, (name, slide) in enumerate(zip(names, slides, strict=True), 1):
                where = folder / letter / str(number)
                found = trial.try_one(here, rest, slide, variables, where, **options)
                results = found["files"].get("results")
                failure = found["failure"] or {}
                why = f"{failure.get('code')}: {failure.get('cause')}"
                # As with a job: results of a container that failed after its post were kept.
                sides[name] = Side(json.loads(Path(results).read_text())) if results else Side(None, why)
            made.append(Slides(rest, sides, dict(zip(names, slides, strict=True))))
    return made[0], made[1]


def _names(slides: Sequence[str]) -> list[str]:
    names = [Path(urlsplit(s).path).name or "slide" for s in slides]
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, 1)]


def _file(path: str) -> Slides:
    from mhs_ray.compare.sides import of_file

    return of_file(Path(path))


def _of_platform(mhs: Client, kind: str, rest: str, scan: Sequence[str]) -> Slides:
    from mhs_ray.compare.sides import of_jobs

    name = f"{kind}:{rest}"
    if kind == "file":
        return _file(rest)
    if kind == "task":
        return of_jobs(mhs, name, [job["id"] for job in mhs.jobs(task_id=rest)])
    if kind == "jobs":
        return of_jobs(mhs, name, _numbers(rest, name))
    [container] = _numbers(rest, name)
    scans = [number for text in scan for number in _numbers(text, "--scan")]
    # A job is asked for by a case algorithm; the jobs stay when it goes.
    name_once = f"compare container {container} {secrets.token_hex(4)}"
    algorithm = mhs.create_algorithm({"name": name_once, "container_id": container})
    try:
        jobs = mhs.submit(scan_ids=scans, algorithm_id=algorithm["id"], description="mhs compare")["job_ids"]
    finally:
        mhs.delete_algorithm(algorithm["id"])
    for job in jobs:
        story.watch(mhs, job, log_lines=False)
    return of_jobs(mhs, name, jobs)


def _numbers(text: str, where: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise InvalidInputError.at(where, "ids are numbers, parted by commas")
    return [int(part) for part in parts]


def _picture(slide: str | None, first: list[dict[str, Any]], second: list[dict[str, Any]], found: Any) -> Any:
    from mhs_ray.compare.report import side_by_side
    from mhs_ray.local.picture import blank, small_slide

    try:
        small, downsample = small_slide(slide) if slide else blank([*found.a, *found.b])
    except SlideError as error:
        output.note(f"drawn without the slide: {error}")
        small, downsample = blank([*found.a, *found.b])
    return side_by_side(small, downsample, first, second, found)


def _show(document: dict[str, Any]) -> None:
    from mhs_ray.compare.report import columns, row_of

    output.table([row_of(s) for s in document["slides"]], columns(), "no slides")
    for fault in document["faults"]:
        output.rich(Text(fault, "red"))
    output.line("more than is allowed" if document["faults"] else "within what is allowed")
    output.note(f"pictures and all numbers: {document['report']}")
