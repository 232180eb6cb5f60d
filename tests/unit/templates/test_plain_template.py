"""The template's own code, in this process, on real slides, against a gateway with real TLS."""

from __future__ import annotations

import base64
import datetime
import http.server
import importlib
import io
import json
import re
import socket
import ssl
import sys
import threading
import urllib.parse
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest
import tifffile
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image

from mhs_ray.templates import write_template

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
NAME = "api.gateway.test"


@dataclass
class Gateway:
    """What the container talks to: serves slides, takes results, files and API keys; says what came."""

    port: int = 0
    slide: bytes = b""
    posts: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    results_status: int = 201
    cut_at: int | None = None  # the first answer with the slide ends there
    slide_status: int = 200
    downloads: list[str | None] = field(default_factory=list)

    @property
    def host(self) -> str:
        return f"gateway.test:{self.port}"

    def url(self, path: str) -> str:
        return f"https://{NAME}:{self.port}{path}?X-Signature=very-secret"


def handler_for(gateway: Gateway) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", length: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            gateway.downloads.append(wanted)
            if gateway.slide_status != 200:
                self.answer(gateway.slide_status, b"<Code>AccessDenied</Code>")
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            body = gateway.slide[start:]
            length = len(body)
            if gateway.cut_at is not None:
                body, gateway.cut_at = body[: gateway.cut_at], None
            self.answer(206 if wanted else 200, body, length)

        def take(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            path = self.path.split("?")[0]
            gateway.posts.append((self.command, path, dict(self.headers), body))
            if path == "/api/v3/token":
                self.answer(200, b'{"access_token": "traded"}')
            elif self.command == "POST":
                self.answer(
                    gateway.results_status, b"null" if gateway.results_status == 201 else b"$.scanResults[0]: no"
                )
            else:
                self.answer(204 if self.command == "PATCH" else 200)

        do_POST = do_PATCH = do_PUT = take  # noqa: N815

    return Handler


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    plain = serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def gateway(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    gateway = Gateway()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_for(gateway))
    gateway.port = server.server_port
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    resolve = socket.getaddrinfo

    def names(host: Any, *rest: Any, **more: Any) -> Any:
        return resolve("127.0.0.1" if host == NAME else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", names)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    for unwanted in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "DEBUG_FILE_UPLOAD_URL"):
        monkeypatch.delenv(unwanted, raising=False)
    yield gateway
    server.shutdown()
    server.server_close()


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The template's main.py as a lab has it, its folders moved below tmp_path."""
    write_template("plain", tmp_path / "lab")
    monkeypatch.syspath_prepend(tmp_path / "lab")
    module = importlib.import_module("main")

    def folder(wanted: str) -> Path:
        place = tmp_path / Path(wanted).name
        place.mkdir(exist_ok=True)
        return place

    monkeypatch.setattr(module, "writable_folder", folder)
    yield module
    for name in ("main", "slide", "results_client"):
        sys.modules.pop(name, None)


@pytest.fixture
def run(main: ModuleType, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the template as the platform does; keywords change the environment, None takes a variable away."""

    def _run(**changes: str | None) -> int:
        env: dict[str, str | None] = {
            "HOST": gateway.host,
            "TASK_ID": "dGFzazoxODU3MTQ=",
            "SCAN_ID": "8946136",
            "SCAN_URL": gateway.url("/slides/0a1b"),
            "JWT_TOKEN": "the-jwt",
            **changes,
        }
        for name, value in env.items():
            monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
        return int(main.main([]))

    return _run


def sample(name: str) -> bytes:
    path = DATA / name
    if not path.exists():
        pytest.skip(
            f"{name} is not there: put the sample slides into {DATA.parent.name}/{DATA.name} beside the project"
        )
    return path.read_bytes()


def small_tiff() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (600, 300), (240, 220, 230)).save(out, "TIFF")
    return out.getvalue()


def tiled_tiff(width: int = 768) -> bytes:
    out = io.BytesIO()
    pixels = numpy.full((width * 2 // 3 // 256 * 256 + 256, width, 3), 200, "uint8")
    tifffile.imwrite(out, pixels, photometric="rgb", tile=(256, 256))
    return out.getvalue()


LOG = [
    r"CUDA is (available! Using GPU: .+|not available.* Falling back to the CPU.*)",
    r"Matrix multiplication \(1000x1000\) completed in \d+\.\d{4} seconds",
    r"Result sample: -?\d+\.\d+",
    r"Processing image: .*/input/image\.(svs|tiff|dcm)",
    r"Generated 4 fake annotations",
    r"Visualization saved to .*/output/result\.png",
    r'Results JSON: (\{"caseResults": \{"mitosisCount": 4\}, "scanResults": \[\{"scanId": "8946136", "geojson": .*\})',
]


@pytest.mark.parametrize(
    ("slide", "suffix", "size"),
    [
        (lambda: sample("CMU-1-Small-Region.svs"), ".svs", (2220, 2967)),
        (lambda: sample("sm_image.dcm"), ".dcm", (50, 50)),
        (small_tiff, ".tiff", (600, 300)),
        (tiled_tiff, ".tiff", (768, 768)),
    ],
    ids=["svs", "dicom", "plain tiff", "tiled tiff"],
)
def test_a_slide_comes_in_and_its_results_go_out_with_the_contracts_log(
    run: Callable[..., int], gateway: Gateway, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    slide: Callable[[], bytes], suffix: str, size: tuple[int, int],
) -> None:  # fmt: skip
    gateway.slide = slide()
    assert run() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(LOG)
    for line, expected in zip(lines, LOG, strict=True):
        assert re.fullmatch(expected, line), line
    (posted,) = gateway.posts
    method, path, headers, body = posted
    assert (method, urllib.parse.unquote(path)) == ("POST", "/api/v3/external/results/dGFzazoxODU3MTQ=")
    assert headers["Authorization"] == "Bearer the-jwt"
    assert json.loads(body) == json.loads(lines[-1].removeprefix("Results JSON: "))
    features = json.loads(body)["scanResults"][0]["geojson"]["features"]
    assert len(features) == 4
    corners = set()
    for feature in features:
        assert isinstance(feature["properties"]["annotation_type"], str)
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        assert all(0 <= x <= size[0] and 0 <= y <= size[1] for x, y in ring)
        corners.add((ring[0][0], ring[0][1]))
    assert len({x for x, _ in corners}) == len({y for _, y in corners}) == 2  # a 2x2 grid
    assert (tmp_path / "input" / f"image{suffix}").read_bytes() == gateway.slide
    with Image.open(tmp_path / "output" / "result.png") as picture:
        assert max(picture.size) <= 1024
        colours = picture.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert (255, 0, 0) in [colour for _, colour in colours]


def test_the_picture_shows_the_pixels_of_a_dicom_slide_where_they_belong(main: ModuleType, tmp_path: Path) -> None:
    import pydicom

    path = tmp_path / "slide.dcm"
    path.write_bytes(sample("sm_image.dcm"))
    frames = pydicom.dcmread(path).pixel_array
    with main.open_slide(path) as slide:
        whole = slide.read_region((0, 0), 0, (50, 50))
        small = slide.thumbnail(50)
    for i in range(25):
        x, y = i % 5 * 10, i // 5 * 10
        assert whole.getpixel((x, y)) == tuple(frames[i][0, 0]) == small.getpixel((x, y))


def test_a_download_that_breaks_goes_on_where_it_broke(
    run: Callable[..., int], gateway: Gateway, main: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(main.time, "sleep", lambda s: None)
    gateway.slide, gateway.cut_at = tiled_tiff(1024), 1_500_000
    assert run() == 0
    first, second = gateway.downloads
    # What urllib3 had read of its last MiB may be lost with the connection; the rest is kept.
    assert first is None
    assert second in {f"bytes={1 << 20}-", "bytes=1500000-"}
    assert (tmp_path / "input" / "image.tiff").read_bytes() == gateway.slide


def test_a_slide_url_that_has_expired_ends_the_run_without_telling_the_url(
    run: Callable[..., int], gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.slide_status = 403
    with pytest.raises(SystemExit, match="HTTP 403") as ended:
        run()
    assert "very-secret" not in str(ended.value) + str(capsys.readouterr())
    assert gateway.posts == []
    assert len(gateway.downloads) == 1


def test_a_gateway_that_refuses_makes_the_run_fail_with_its_reason_and_posts_once(
    run: Callable[..., int], gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.slide, gateway.results_status = small_tiff(), 422
    assert run() == 1
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith("Results JSON: {")
    assert "HTTP 422 $.scanResults[0]: no" in said.err
    assert "the-jwt" not in said.out + said.err
    assert len(gateway.posts) == 1


def test_a_gateway_whose_certificate_nobody_vouches_for_gets_nothing(
    run: Callable[..., int], gateway: Gateway, main: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slide = tmp_path / "there.tiff"
    slide.write_bytes(small_tiff())
    monkeypatch.setattr(main, "download", lambda url, folder: slide)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    assert run() == 1
    assert gateway.posts == []


def test_an_api_key_is_traded_for_a_token(run: Callable[..., int], gateway: Gateway) -> None:
    gateway.slide = small_tiff()
    assert run(JWT_TOKEN=None, API_KEY_ID="id", API_KEY_SECRET="secret") == 0
    token, results = gateway.posts
    assert token[:2] == ("POST", "/api/v3/token")
    assert token[2]["Authorization"] == "Basic " + base64.b64encode(b"id:secret").decode()
    assert token[3] == b"grant_type=client_credentials"
    assert results[2]["Authorization"] == "Bearer traded"


@pytest.mark.parametrize(
    ("missing", "told"),
    [("HOST", "HOST not set"), ("TASK_ID", "TASK_ID not set"), ("JWT_TOKEN", "neither JWT_TOKEN nor API_KEY_ID")]
)  # fmt: skip
def test_what_is_not_set_is_named(
    run: Callable[..., int], gateway: Gateway, capsys: pytest.CaptureFixture[str], missing: str, told: str
) -> None:
    gateway.slide = small_tiff()
    assert run(**{missing: None}) == 1
    assert told in capsys.readouterr().err


def test_without_a_slide_it_says_what_to_do(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(SCAN_URL=None) == 2
    assert "Set SCAN_URL" in capsys.readouterr().err


def test_debug_files_are_put_as_one_zip(run: Callable[..., int], gateway: Gateway) -> None:
    gateway.slide = small_tiff()
    assert run(DEBUG_FILE_UPLOAD_URL=gateway.url("/debug")) == 0
    method, path, _, body = gateway.posts[-1]
    assert (method, path) == ("PUT", "/debug")
    assert sorted(zipfile.ZipFile(io.BytesIO(body)).namelist()) == ["result.png", "results.json"]


def test_a_case_is_patched_with_what_changes_only(run: Callable[..., int], gateway: Gateway, main: ModuleType) -> None:
    gateway.slide = small_tiff()
    run()
    main.ResultsClient.from_env().patch_case(triage_category="Urgent")
    method, path, _, body = gateway.posts[-1]
    assert (method, urllib.parse.unquote(path)) == ("PATCH", "/api/v3/external/case/dGFzazoxODU3MTQ=")
    assert json.loads(body) == {"triage_category": "Urgent"}


def test_a_folder_that_cannot_be_written_moves_below_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_template("plain", tmp_path / "lab")
    monkeypatch.syspath_prepend(tmp_path / "lab")
    module = importlib.import_module("main")
    try:
        monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
        assert module.writable_folder("/proc/input") == tmp_path / "input"
        assert module.writable_folder(str(tmp_path / "mine")) == tmp_path / "mine"
    finally:
        for name in ("main", "slide", "results_client"):
            sys.modules.pop(name, None)
