"""``mhs replay``: an ended job once more, on this machine, from what was recorded of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from mhs_ray.cli import output, trial
from mhs_ray.cli.command import CommandFailed
from mhs_ray.cli.connect import connect
from mhs_ray.cli.signals import ended_by_signals
from mhs_ray.client import Client
from mhs_ray.domain.env import EnvVar
from mhs_ray.domain.errors import ConflictError, Fault, InvalidInputError
from mhs_ray.domain.models import ImageRef
from mhs_ray.domain.settings import Settings, load_settings
from mhs_ray.local.exits import DIFFERENT


def replay(
    job: Annotated[int, typer.Argument(metavar="JOB", help="id of the job", min=1)],
    scan: Annotated[
        str | None, typer.Option(metavar="SLIDE", help="the slide, where the platform cannot give it")
    ] = None,
    env: trial.EnvOption = [],  # noqa: B006
    gpus: trial.GpuOption = "auto",
    folder: Annotated[Path, typer.Option("--output", "-o", help="where log, results and picture go")] = Path(
        "mhs-replay-output"
    ),
) -> None:
    """Run an ended job again on this machine: the digest, slide, variables and limits that it had.

    The image is pulled by its digest, the slide's hash must be the recorded one. Secret variables are never returned:
    give each by --env. Tells whether the results are the same. Nothing changes on the platform.

    Example: mhs replay 42 --env API_TOKEN=…

    Exit codes: 0 it ended as the job did, with the same results · 9 it did not · 1 it could not be tried
    """
    settings = load_settings()
    with connect() as mhs:
        facts = mhs.replay(job)
        variables = _variables(facts, trial.pairs(env, "--env"))
        slide = _slide(facts, scan)
        recorded = _recorded(mhs, job, facts)
    with ended_by_signals(), trial.standing(_reaching(settings, slide)) as here:
        _check_hash(facts, here.stand.slide_hashes(slide), slide)
        image = _pull(here.engine, facts["image"])
        document = trial.try_one(
            here, image, slide, variables, folder, instance_type=facts["instance_type"], gpus=gpus,
            time_limit=facts["time_limit_s"], host=facts["host"], task_number=int(facts["task_id"]),
            scan_number=int(facts["scan_id"]),
        )  # fmt: skip
    document["replay"] = _verdict(facts, document, recorded)
    output.emit(document, _show)
    if not document["replay"]["same"]:
        raise CommandFailed(DIFFERENT)


def _variables(facts: Mapping[str, Any], given: Mapping[str, str]) -> list[EnvVar]:
    missing = [v["name"] for v in facts["env"] if v["secret"] and v["name"] not in given]
    if missing:
        raise InvalidInputError(
            [Fault("--env", f"{name} is secret and so not returned; give --env {name}=…") for name in missing]
        )
    known = {v["name"]: EnvVar(v["name"], v["value"] or "", v["secret"]) for v in facts["env"]}
    changed = {name: EnvVar(name, value, name in known and known[name].secret) for name, value in given.items()}
    return [*{**known, **changed}.values()]


def _slide(facts: Mapping[str, Any], given: str | None) -> str:
    if given is not None:
        return trial.existing(given)
    slide = facts["slide"]
    if slide["url"]:
        return str(slide["url"])
    if slide["path"] and Path(slide["path"]).exists():
        return str(slide["path"])
    raise InvalidInputError.at(
        "--scan", f"the platform does not keep the bytes of {slide['name']!r}: name the same slide on this machine"
    )


def _check_hash(facts: Mapping[str, Any], found: tuple[str, ...], slide: str) -> None:
    recorded = tuple(facts["slide"]["sha256"])
    if not recorded:
        output.note("the job recorded no hash of its slide, so it is not known whether this is the same one")
    elif found != recorded:
        raise ConflictError(
            f"{trial.shown(slide)} is not the slide that job {facts['job_id']} ran on: its SHA-256 is "
            f"{found[0][:16]}…, recorded was {recorded[0][:16]}…; name the right one by --scan"
        )


def _reaching(settings: Settings, slide: str) -> Settings:
    """Return settings by which the slide's URL, which the platform gave, may be fetched from wherever it is."""
    parts = urlsplit(slide)
    if parts.scheme not in ("http", "https"):
        return settings
    slides = settings.slides.model_copy(update={"allow_hosts": (*settings.slides.allow_hosts, parts.netloc)})
    return settings.model_copy(update={"slides": slides})


def _pull(engine: Any, image: Mapping[str, Any]) -> str:
    from mhs_ray.engines.build import image_tools
    from mhs_ray.ports import RegistryCredential

    ref = ImageRef(image["registry"], image["repository"], image["digest"])
    output.note(f"pulling {ref}")
    engine.pull(ref, RegistryCredential(image["username"], image["password"], tls=image["tls"]))
    found = image_tools(engine).image_id(str(ref))
    if found is None:
        raise ConflictError(f"{engine.name} pulled {ref} but does not have it")
    return found


def _recorded(mhs: Client, job: int, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    return dict(mhs.job_results(job)) if facts["results_digest"] is not None else None


def _verdict(
    facts: Mapping[str, Any], document: Mapping[str, Any], recorded: Mapping[str, Any] | None
) -> dict[str, Any]:
    import json

    from mhs_ray.compare.differences import Rules, Side, compare

    failure = (document["failure"] or {}).get("code")
    ended_alike = (document["state"], failure) == (facts["state"], facts["failure_code"])
    same_results = document.get("results_digest") == facts["results_digest"]
    difference = None
    if not same_results and recorded is not None and "results" in document["files"]:
        found = json.loads(Path(document["files"]["results"]).read_text())
        difference = compare(facts["slide"]["name"], Side(recorded), Side(found), Rules()).document
    return {
        "job": facts["job_id"], "same": ended_alike and same_results, "same_results": same_results,
        "state": facts["state"], "failure_code": facts["failure_code"], "results_digest": facts["results_digest"],
        "difference": difference,
    }  # fmt: skip


def _show(document: dict[str, Any]) -> None:
    from mhs_ray.compare.report import columns, row_of

    trial.show(document)
    found = document["replay"]
    if found["same"]:
        output.line(f"the same as job {found['job']}")
        return
    told = f"{found['state']}{' (' + found['failure_code'] + ')' if found['failure_code'] else ''}"
    output.line(f"not the same as job {found['job']}, which {told}")
    if found["difference"]:
        output.table([row_of(found["difference"])], columns(), "")
