"""``mhs scan``: whole slide images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from mhs_ray.cli import output
from mhs_ray.cli.command import command
from mhs_ray.cli.connect import connect, is_local
from mhs_ray.cli.images import Limit, Name
from mhs_ray.client import Client
from mhs_ray.client import wire as w
from mhs_ray.domain.errors import InvalidInputError, NotFoundError

app = typer.Typer(no_args_is_help=True, help="Scans: whole slide images, by upload, by path or by URL.")

ScanRow = Annotated[int, typer.Argument(metavar="SCAN", help="id of the scan (`id`, not `scan_id`)", min=1)]


def show_scan(scan: w.Scan) -> None:
    """Show one scan to a person."""
    facts = scan["facts"]
    size = f"{facts['width']} x {facts['height']}" if "width" in facts else None
    output.facts({
        "id": scan["id"], "scan id": scan["scan_id"], "name": scan["name"], "status": scan["status"],
        "failure message": scan["failure_message"], "source": scan["source"],
        "size": output.size(scan["size_bytes"]), "format": facts.get("format"), "pixels": size,
        "mpp": facts.get("mpp_x"), "levels": len(facts["levels"]) if facts.get("levels") else None,
        "created by": scan["created_by"], "created at": output.local_time(scan["created_at"]),
    })  # fmt: skip


@command(app)
def add(
    where: Annotated[str, typer.Argument(metavar="PATH|URL", help="a slide, a DICOM folder, or an http(s) URL")],
    upload: Annotated[
        bool | None,
        typer.Option("--upload/--no-upload", help="send the file; when left out, only to a platform elsewhere"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="its name; the file's when left out")] = None,
    scan_id: Annotated[str | None, typer.Option(help="the contract's SCAN_ID; the next one when left out")] = None,
) -> None:
    """Register a slide and have it opened.

    Examples: mhs scan add slide.svs · mhs scan add slide.svs --upload · mhs scan add https://…/slide.svs
    """
    with connect() as mhs:
        output.emit(add_scan(mhs, where, upload=upload, name=name, scan_id=scan_id), show_scan)


def add_scan(
    mhs: Client, where: str, *, upload: bool | None = None, name: str | None = None, scan_id: str | None = None
) -> w.Scan:
    """Register the slide at a path or URL; a file is sent to a platform that is not on this machine."""
    if urlsplit(where).scheme in {"http", "https"}:
        if upload:
            raise InvalidInputError.at("--upload", "is for files; the platform fetches a URL itself")
        return mhs.add_scan({"url": where, "name": name, "scan_id": scan_id})
    path = Path(where).expanduser().absolute()
    if not path.exists():
        raise NotFoundError("file", where)
    if upload is None:
        upload = not is_local(mhs)
    if not upload:
        return mhs.add_scan({"path": str(path), "name": name, "scan_id": scan_id})
    if path.is_dir():
        raise InvalidInputError.at("PATH", f"{where} is a folder; zip a DICOM series to upload it")
    with output.progress_bar(f"uploading {path.name}") as progress:
        return mhs.add_scan_upload(path, name=name, scan_id=scan_id, progress=progress)


def _row(scan: w.Scan) -> dict[str, Any]:
    return {**scan, "size": output.size(scan["size_bytes"]), "created_at": output.local_time(scan["created_at"])}


@command(app, "list")
def list_(name: Name = None, status: str | None = None, scan_id: str | None = None, limit: Limit = 50) -> None:
    """List scans, newest first."""
    with connect() as mhs:
        found = list(mhs.scans(limit, name=name, status=status, scan_id=scan_id))
    columns = ("id", "scan_id", "name", "status", "source", "size", "created_at")
    output.emit(found, lambda f: output.table(map(_row, f), columns, "no scans; add one: mhs scan add PATH"))


@command(app)
def show(scan: ScanRow) -> None:
    """Show a scan."""
    with connect() as mhs:
        output.emit(mhs.scan(scan), show_scan)


@command(app)
def url(scan: ScanRow, expires_in: Annotated[int, typer.Option(help="seconds", min=1)] = 3600) -> None:
    """Print a signed URL of an uploaded slide; whoever has it can read the slide until it expires."""
    with connect() as mhs:
        output.emit(mhs.scan_url(scan, expires_in), lambda signed: output.line(signed["url"]))


@command(app)
def delete(scan: ScanRow) -> None:
    """Delete a scan that no job used."""
    with connect() as mhs:
        mhs.delete_scan(scan)
    output.emit({"deleted": scan}, lambda _: output.line(f"deleted scan {scan}"))
