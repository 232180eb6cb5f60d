"""What every command has: ``--json``, errors as problem documents, exit codes, a clean Ctrl-C."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar, get_type_hints

import typer

from mhs_ray.cli import output
from mhs_ray.client.errors import ApiError, UnreachableError
from mhs_ray.domain import errors as e

F = TypeVar("F", bound=Callable[..., Any])

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
JOB_FAILED: Final = 4
INTERRUPTED: Final = 130
EXIT_CODES: Final = (
    "Exit codes: 0 done · 1 refused or failed · 2 wrong use · 3 the platform cannot be reached · "
    "4 the job ended without success · 130 interrupted"
)

_SLUGS: Final[tuple[tuple[type[e.MhsError], str, str], ...]] = (
    (UnreachableError, "unreachable", "The platform cannot be reached"),
    (e.InvalidInputError, "invalid-input", "The request has faults"),
    (e.NotFoundError, "not-found", "There is no such thing"),
    (e.ConflictError, "conflict", "Not now"),
    (e.EngineError, "engine", "The container engine failed"),
    (e.SlideError, "slide", "The slide cannot be used"),
    (e.MhsError, "failed", "The command failed"),
)

JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; progress and notes on stderr.")]


class CommandFailed(e.MhsError):
    """The command did its work and the answer is no; what there is to say was said already."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class NotRunningError(UnreachableError):
    """No platform runs on this machine, and no other one was named."""

    def __init__(self, home: str) -> None:
        super().__init__(home, "not started")
        self.home = home

    def __str__(self) -> str:
        return (
            f"no platform runs in {self.home}: start it with `mhs up`, "
            "or set MHS_URL, MHS_CLIENT_ID and MHS_CLIENT_SECRET to use another one"
        )


def problem_of(error: e.MhsError) -> dict[str, Any]:
    """Return the RFC 9457 document of an error: the API's own, or one in its manner."""
    if isinstance(error, ApiError):
        return error.problem
    slug, title = next((slug, title) for kind, slug, title in _SLUGS if isinstance(error, kind))
    faults = [{"path": f.path, "message": f.message} for f in getattr(error, "faults", ())]
    return {"type": f"/problems/{slug}", "title": title, "detail": str(error), "errors": faults}


def report(error: e.MhsError) -> int:
    """Show an error where people or programs look for it; return the exit code."""
    output.problem(problem_of(error))
    return UNREACHABLE if isinstance(error, UnreachableError) else FAILED


def command(app: typer.Typer, name: str | None = None, **options: Any) -> Callable[[F], F]:
    """Register a function as a command of `app` with ``--json`` and this module's manner of failing."""

    def register(function: F) -> F:
        hints = get_type_hints(function, include_extras=True)
        signature = inspect.signature(function)
        parameters = [p.replace(annotation=hints[p.name]) for p in signature.parameters.values()]
        flag = inspect.Parameter("json_output", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonFlag)

        @functools.wraps(function)
        def run(*args: Any, json_output: bool = False, **kwargs: Any) -> None:
            with output.as_json(json_output):
                try:
                    function(*args, **kwargs)
                except CommandFailed as failed:
                    raise typer.Exit(failed.code) from None
                except e.MhsError as error:
                    raise typer.Exit(report(error)) from None
                except BrokenPipeError:
                    # The reader has seen enough, as in `mhs jobs | head`.
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                    raise typer.Exit(OK) from None
                except KeyboardInterrupt:
                    output.note("interrupted")
                    raise typer.Exit(INTERRUPTED) from None

        run.__signature__ = signature.replace(parameters=[*parameters, flag], return_annotation=None)  # type: ignore[attr-defined]
        run.__annotations__ = {**hints, "json_output": JsonFlag}
        app.command(name, **options)(run)
        return function

    return register


class App(typer.Typer):
    """The whole command; wrong use with ``--json`` is a problem document too."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command of this process."""
        given = sys.argv[1:]
        if "--json" not in given:
            return super().__call__(*args, **kwargs)
        try:
            code = super().__call__(*args, standalone_mode=False, **kwargs)
        except Exception as error:
            said = getattr(error, "format_message", None)
            if said is None:
                raise
            detail = f"{str(said()).rstrip('.')}; see `mhs --help`"
            document = {"type": "/problems/usage", "title": "Wrong use of the command", "detail": detail, "errors": []}
            with output.as_json(True):
                output.problem(document)
            sys.exit(USAGE)
        sys.exit(code if isinstance(code, int) else OK)
