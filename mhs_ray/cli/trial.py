"""``mhs test``: a container on a slide, on this machine, under the platform's own rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import typer
from rich.text import Text

from mhs_ray.cli import output, story
from mhs_ray.cli.command import CommandFailed
from mhs_ray.cli.signals import ended_by_signals
from mhs_ray.domain.env import EnvVar, check_env
from mhs_ray.domain.errors import AdmissionError, InvalidInputError, NotFoundError
from mhs_ray.domain.instances import INSTANCE_TYPES
from mhs_ray.domain.settings import Settings, load_settings
from mhs_ray.local.exits import EXIT_CODES, REFUSED, exit_code

BUILT: Final = "localhost/mhs-test:latest"
Gpus = Literal["auto", "none", "all"]

EnvOption = Annotated[
    list[str], typer.Option("--env", "-e", metavar="K=V", help="a variable of the container; can be repeated")
]
TypeOption = Annotated[
    str, typer.Option("--instance-type", help="its limits are applied, as far as this machine has them")
]
GpuOption = Annotated[Gpus, typer.Option("--gpus", help="this machine's: none, all, or auto: the first where one is")]
HELP: Final = "Exit codes: " + " · ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())


def try_image(
    image: Annotated[str | None, typer.Argument(metavar="IMAGE", help="tag or id in podman or Docker")] = None,
    scan: Annotated[str | None, typer.Option(metavar="SLIDE", help="file, DICOM folder, or http(s) URL")] = None,
    demo_slide: Annotated[bool, typer.Option("--demo-slide", help="make a slide of real tissue and use it")] = False,
    build: Annotated[Path | None, typer.Option(metavar="DIR", help="build its Dockerfile first")] = None,
    build_arg: Annotated[list[str], typer.Option(metavar="K=V", help="for --build; can be repeated")] = [],  # noqa: B006
    env: EnvOption = [],  # noqa: B006
    instance_type: TypeOption = "g4dn.xlarge",
    gpus: GpuOption = "auto",
    time_limit: Annotated[int | None, typer.Option(metavar="SECONDS", help="90 minutes when left out")] = None,
    host: Annotated[str | None, typer.Option(help="HOST as the container gets it, e.g. app.techcyte.com")] = None,
    folder: Annotated[Path, typer.Option("--output", "-o", help="where log, results and picture go")] = Path(
        "mhs-test-output"
    ),
) -> None:
    """Try a container on a slide here, as the platform would run it; no server is needed.

    The image is checked as after a push, then runs in the platform's sandbox with its limits and variables, and posts
    to the platform's own results gateway, which checks everything that Techcyte checks.

    Example: mhs test my-docker-image:latest --scan slide.svs -e THRESHOLD=0.5

    Example: mhs test --build my-model --demo-slide --json

    With --json the last line of stdout is one object with `state`, `results_valid`, `faults` (the JSON path of each),
    `peak_memory_bytes`, `fits` (instance types with enough memory), `failure`, `files` and more.
    """
    settings = load_settings()
    if (image is None) == (build is None):
        raise InvalidInputError.at("IMAGE", "name an image, or a folder to build it from with --build")
    if (scan is None) != demo_slide:
        raise InvalidInputError.at("--scan", "name a slide, or have one made by --demo-slide")
    variables = checked_env(env)
    if instance_type not in INSTANCE_TYPES:
        raise InvalidInputError.at(
            "--instance-type", f"{instance_type[:60]!r} is not one of {', '.join(INSTANCE_TYPES)}"
        )
    slide = str(demo(settings)) if scan is None else existing(scan)
    with ended_by_signals(), standing(settings) as here:
        if build is not None:
            image = build_here(here.engine, build, pairs(build_arg, "--build-arg"))
        assert image is not None
        document = try_one(
            here, image, slide, variables, folder, instance_type=instance_type,
            gpus=gpus, time_limit=time_limit, host=host,
        )  # fmt: skip
    finish(document)


try_image.__doc__ = f"{try_image.__doc__}\n    {HELP}\n"


def finish(document: dict[str, Any]) -> None:
    """Show the document of a trial and end with its exit code."""
    output.emit(document, show)
    if code := exit_code(document):
        raise CommandFailed(code)


class Here:
    """A stand and the engine it uses."""

    def __init__(self, stand: Any, engine: Any) -> None:
        self.stand, self.engine = stand, engine


@contextmanager
def standing(settings: Settings) -> Iterator[Here]:
    """Open a stand on this machine's engine; logs of containers go to stderr as they come."""
    from mhs_ray.engines.select import pick_engine
    from mhs_ray.local.stand import Stand
    from mhs_ray.platform import dockerd

    settings = dockerd.join(settings)
    engine = pick_engine(settings.engine, docker_host=settings.docker_host)
    with Stand(settings, engine, echo=lambda text: output.note(f"  │ {story.short(text)}")) as stand:
        yield Here(stand, engine)


def try_one(
    here: Here, image: str, slide: str, env: Sequence[EnvVar], folder: Path, *, instance_type: str = "g4dn.xlarge",
    gpus: Gpus = "auto", time_limit: int | None = None, host: str | None = None, task_number: int | None = None,
    scan_number: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run one trial; return its document."""
    from mhs_ray.local.report import describe, describe_refusal
    from mhs_ray.local.stand import Trial

    trial = Trial(
        image=image, slide=slide, env=env, instance_type=instance_type, gpus=chosen_gpus(here.engine, gpus), host=host,
        time_limit_s=time_limit, task_number=task_number, scan_number=scan_number,
    )  # fmt: skip
    output.note(f"looking at {image} as after a push")
    try:
        here.stand.admit(image)
    except AdmissionError as error:
        return {"engine": here.engine.name, **describe_refusal(error)}
    output.note(f"running it on {shown(slide)} as on {instance_type}")
    ended = here.stand.run(trial)
    return {"engine": here.engine.name, **describe(here.stand, ended, folder)}


def chosen_gpus(engine: Any, wanted: Gpus) -> tuple[str, ...]:
    """Return device ids. Raises InvalidInputError where GPUs are asked for and there are none."""
    found = tuple(engine.info().gpus)
    if wanted == "all" and not found:
        raise InvalidInputError.at("--gpus", f"{engine.name} offers no GPU on this machine; use --gpus none")
    return () if wanted == "none" else found if wanted == "all" else found[:1]


def build_here(engine: Any, folder: Path, arguments: dict[str, str], tag: str = BUILT) -> str:
    """Build `folder`; return the tag."""
    from mhs_ray.engines.build import image_tools

    if not (folder / "Dockerfile").is_file():
        raise NotFoundError("Dockerfile in", folder)
    output.note(f"building {folder} as {tag}")
    image_tools(engine).build(folder, tag, arguments)
    return tag


def demo(settings: Settings) -> Path:
    """Return a slide of real tissue, made at the first time."""
    from mhs_ray.slides.demo import make_demo_slide

    path = settings.home / "demo" / "mhs-test.svs"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    if not path.exists():
        made = make_demo_slide(path, 3072, 2048)
        output.note(f"made a slide of {made.width} x {made.height} pixels of tissue: {path}")
    return path


def existing(slide: str) -> str:
    """Return a slide's URL or path. Raises NotFoundError for a path where nothing is."""
    if urlsplit(slide).scheme not in {"http", "https"} and not Path(slide).exists():
        raise NotFoundError("slide", slide)
    return slide


def shown(slide: str) -> str:
    """Return a path, or a URL without its query, which may hold a signature."""
    return urlsplit(slide)._replace(query="", fragment="").geturl() if "://" in slide else slide


def pairs(given: Sequence[str], option: str) -> dict[str, str]:
    """Return K=V words as names and values. Raises InvalidInputError."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise InvalidInputError.at(option, "write NAME=VALUE")  # not what was given: it may be a secret
        found[name] = value
    return found


def checked_env(given: Sequence[str]) -> list[EnvVar]:
    """Return K=V words as variables that a runnable container may have. Raises InvalidInputError."""
    variables = [EnvVar(name, value) for name, value in pairs(given, "--env").items()]
    if faults := check_env(variables, "--env"):
        raise InvalidInputError(faults)
    return variables


def show(document: dict[str, Any]) -> None:
    """Show a trial to a person."""
    output.line("")
    if document["state"] == REFUSED:
        failure = document["failure"]
        output.rich(Text.assemble(("the image would be refused: ", "bold red"), failure["cause"]))
        output.rich(Text.assemble(("What to do: ", "bold"), failure["mend"]))
        return
    peak, kind, resources = document["peak_memory_bytes"], document["instance_type"], document["resources"]
    output.facts(
        {
            "state": document["state"],
            "results valid": document["results_valid"],
            "features": document["features"],
            "took": f"{resources.get('timings', {}).get('total_s', 0):g} s",
            "peak memory": output.size(peak) if peak else None,
            "fits": ", ".join(document["fits"]) if document["fits"] else None,
            "run as on": f"{kind['name']} ({kind['vcpu']} vCPU, {output.size(kind['memory_bytes'])})",
            "setuid files": document["image"]["setuid_count"],
            **document["files"],
        }
    )
    for warning in document["warnings"]:
        output.note(f"warning: {warning}")
    for fault in document["faults"]:
        output.rich(Text.assemble((f"{fault['path']}: ", "bold"), fault["message"]))
    if document["failure"]:
        story.show_failure(document["failure"])
