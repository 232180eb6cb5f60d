from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mhs_ray.domain.errors import AdmissionError, RegistryError
from mhs_ray.registry.admission import AdmissionLimits, admit
from mhs_ray.registry.media import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, SCHEMA1
from mhs_ray.registry.scanner import Scanner
from tests.registry_images import GZIP, TAR, ZSTD, Members, Memory, image, index, sha, special, tar

LIMITS = AdmissionLimits()


def refused(source: Memory, digest: str, limits: AdmissionLimits = LIMITS) -> str:
    with pytest.raises(AdmissionError) as caught:
        admit(source, digest, limits)
    assert caught.value.mend
    return str(caught.value)


def test_an_ordinary_image_is_admitted_with_its_details() -> None:
    source = Memory()
    run = {
        "Cmd": ["--fast"], "User": "1000", "Env": ["PATH=/bin", "MODEL=secret-value"], "Labels": {"org": "lab"},
        "Volumes": {"/data": {}},
    }  # fmt: skip
    digest = image(source, [(("bin/sh", b"x" * 5000),), (("app/main.py", b"print(1)"),)], run)
    admission = admit(source, digest, LIMITS)
    details = admission.details
    assert admission.digest == digest
    assert details["entrypoint"] == ["/app/main.py"]
    assert details["cmd"] == ["--fast"]
    assert (details["workdir"], details["user"], details["labels"]) == ("/app", "1000", {"org": "lab"})
    assert details["env_names"] == ["MODEL", "PATH"]
    assert "secret-value" not in json.dumps(details)
    assert [layer["created_by"] for layer in details["layers"]] == ["COPY layer 0", "COPY layer 1"]
    assert admission.size_bytes == details["size"] > sum(layer["size"] for layer in details["layers"])
    assert details["uncompressed_size"] == 2 * 10240
    assert "VOLUME /data" in details["warnings"][0]


@pytest.mark.parametrize(
    ("layer_type", "pack"),
    [
        (TAR, bytes),
        ("application/vnd.docker.image.rootfs.diff.tar", bytes),
        (GZIP, lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:])),  # two members, as pigz writes
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", gzip.compress),
    ],
)
def test_every_layer_type_of_the_engines_is_read(layer_type: str, pack: Any) -> None:
    source = Memory()
    digest = image(source, layer_type=layer_type, pack=pack, manifest_type=DOCKER_MANIFEST)
    assert admit(source, digest, LIMITS).details["files"] == 1


def test_the_linux_amd64_image_of_a_buildx_index_is_taken_and_attestations_are_passed_over() -> None:
    source = Memory()
    wanted = image(source)
    arm = sha(b"arm")
    listed = index(source, [(wanted, "linux/amd64"), (arm, "linux/arm64"), (sha(b"att"), "unknown/unknown")])
    admission = admit(source, listed, LIMITS)
    assert admission.digest == wanted
    assert admission.details["pushed_digest"] == listed


def test_an_index_without_or_with_two_amd64_images_is_refused_with_the_mend() -> None:
    source = Memory()
    one, two = image(source), image(source, run={"User": "2"})
    none = index(source, [(one, "linux/arm64"), (two, "unknown/unknown")], DOCKER_LIST)
    assert "is for linux/arm64" in refused(source, none)
    assert "docker build --platform linux/amd64" in refused(source, none)
    assert "2 entries" in refused(source, index(source, [(one, "linux/amd64"), (two, "linux/amd64")]))
    nested = source.add_manifest(json.loads(source.manifests[none].body), DOCKER_LIST)
    body = {
        "schemaVersion": 2,
        "manifests": [
            {
                "mediaType": DOCKER_LIST,
                "digest": nested,
                "size": 2,
                "platform": {"os": "linux", "architecture": "amd64"},
            }
        ],
    }
    assert "no image" in refused(source, source.add_manifest(body, DOCKER_LIST))


def test_an_arm64_image_is_refused_with_the_command_that_mends_it() -> None:
    source = Memory()
    text = refused(source, image(source, change_config=lambda c: c.update(architecture="arm64")))
    assert "linux/arm64" in text
    assert "docker build --platform linux/amd64" in text


@pytest.mark.parametrize("media_type", [*SCHEMA1, "application/vnd.cncf.helm.config.v1+json"])
def test_what_is_no_modern_image_is_refused(media_type: str) -> None:
    source = Memory()
    text = refused(source, source.add_manifest({"schemaVersion": 1, "fsLayers": []}, media_type))
    assert "schema 1" in text or "no container image" in text


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ({"Entrypoint": None, "Cmd": []}, "no entrypoint and no command"),
        ({"Entrypoint": "sh -c x"}, "Entrypoint is no list of texts"),
        ({"Env": [f"BIG={'x' * 200_000}"]}, "cannot be started with more than 96 KiB"),
        ({"Env": "A=1"}, "ENV is no list"),
        ({"Cmd": ["x" * 40_000]}, "longer than 32 KiB"),
        ({"Labels": {"a": "\0"}}, "a NUL or half a character"),
        ({"User": "\ud800"}, "a NUL or half a character"),
        ({"Labels": {"mhs.job": "1"}}, "the platform's own"),
        ({"Labels": {"a": 1}}, "not all texts"),
        ({"WorkingDir": "app"}, "no absolute path"),
        ({"Volumes": ["/data"]}, "no JSON object"),
        ({"entrypoint": ["/evil"]}, "spells 'Entrypoint' as 'entrypoint'"),
    ],
)
def test_a_configuration_that_cannot_run_is_refused(run: dict[str, Any], says: str) -> None:
    source = Memory()
    assert says in refused(source, image(source, run=run))


def test_variables_that_the_platform_sets_are_warned_of() -> None:
    source = Memory()
    env = ["LD_PRELOAD=/x.so", "NVIDIA_VISIBLE_DEVICES=all", "TASK_ID=1", "PATH=/bin", "NVIDIA_DRIVER_CAPABILITIES=all"]
    warnings = admit(source, image(source, run={"Env": env}), LIMITS).details["warnings"]
    assert len(warnings) == 3
    assert all("is overridden for every task" in warning for warning in warnings)


def test_more_layers_than_can_be_mounted_are_refused_before_one_is_read() -> None:
    source = Memory()
    digest = image(source, [tar(())] * 201)
    source.blobs.clear()
    assert "201 layers; at most 120" in refused(source, digest)


def test_a_layer_with_urls_or_of_a_foreign_type_is_refused() -> None:
    source = Memory()

    def urls(manifest: dict[str, Any]) -> None:
        manifest["layers"][0]["urls"] = ["https://example.org/layer"]

    def foreign(manifest: dict[str, Any]) -> None:
        manifest["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"

    for change in (urls, foreign):
        assert "from elsewhere" in refused(source, image(source, change_manifest=change))


def test_names_in_other_case_or_twice_cannot_hide_layers_from_the_checks() -> None:
    source = Memory()
    body = source.manifests[image(source)].body
    twice = body[:-1] + b', "layers": []}'
    other_case = body[:-1] + b', "Layers": []}'
    assert "not readable JSON" in refused(source, source.add_manifest(twice))
    assert "spells 'layers' as 'Layers'" in refused(source, source.add_manifest(other_case))
    assert "not readable JSON" in refused(source, source.add_manifest(b"[" * 200_000))


def test_a_size_beyond_all_numbers_is_refused() -> None:
    source = Memory()
    digest = image(source, change_manifest=lambda m: m["layers"][0].update(size=10**400))
    assert "without a size" in refused(source, digest)


def test_a_manifest_under_a_false_type_is_refused() -> None:
    source = Memory()
    body = source.manifests[image(source)].body.replace(OCI_MANIFEST.encode(), OCI_INDEX.encode())
    assert "another type than it says" in refused(source, source.add_manifest(body))


def test_a_manifest_that_is_an_image_and_an_index_at_once_is_refused() -> None:
    source = Memory()
    assert "index as well" in refused(source, image(source, change_manifest=lambda m: m.update(manifests=[])))


def test_a_false_diff_id_is_refused() -> None:
    source = Memory()
    digest = image(source, change_config=lambda c: c["rootfs"].update(diff_ids=[sha(b"other")]))
    text = refused(source, digest)
    assert "false diff_id" in text
    assert text.startswith("layer 1 of the image")


def test_bytes_other_than_the_manifest_says_are_refused() -> None:
    damages: list[Callable[[bytes], bytes]] = [
        lambda data: data + b"\0",
        lambda data: data[:-1],
        lambda data: data[:9] + b"\x13" + data[10:],
    ]
    for damage in damages:
        source = Memory()
        digest = image(source)
        layer = json.loads(source.manifests[digest].body)["layers"][0]["digest"]
        source.blobs[layer] = damage(source.blobs[layer])
        assert "layer 1" in refused(source, digest)


def test_a_configuration_other_than_the_manifest_says_is_refused() -> None:
    source = Memory()
    digest = image(source)
    config = json.loads(source.manifests[digest].body)["config"]["digest"]
    source.blobs[config] = source.blobs[config].replace(b"amd64", b"amd46")
    assert "configuration is not of the size and digest" in refused(source, digest)


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (special("../etc/cron.d/x", tarfile.REGTYPE), "leads out of its folder"),
        (special("app/../../x", tarfile.DIRTYPE), "leads out of its folder"),
        (special("/etc/passwd", tarfile.REGTYPE), "absolute path"),
        (special("app/link", tarfile.LNKTYPE, "../../etc/shadow"), "leads out of its folder"),
        (special("app/link", tarfile.LNKTYPE, "/etc/shadow"), "absolute path"),
    ],
)
def test_paths_that_lead_out_of_the_image_are_refused(member: tarfile.TarInfo, says: str) -> None:
    source = Memory()
    assert says in refused(source, image(source, [[member]]))


def test_symbolic_links_may_point_anywhere_since_engines_resolve_them_inside() -> None:
    source = Memory()
    links = [
        special("usr/bin/python", tarfile.SYMTYPE, "/etc/alternatives/python"),
        special("a", tarfile.SYMTYPE, "../b"),
    ]
    assert admit(source, image(source, [links]), LIMITS).details["files"] == 2


def test_setuid_files_are_reported_and_device_nodes_warned_of() -> None:
    source = Memory()
    members = [special("bin/su", tarfile.REGTYPE, mode=0o4755), special("dev/sda", tarfile.BLKTYPE)]
    details = admit(source, image(source, [members]), LIMITS).details
    assert details["setuid_files"] == ["bin/su"]
    assert "dev/sda" in details["warnings"][0]


def test_a_decompression_bomb_is_refused_early() -> None:
    source = Memory(piece=1 << 16)
    packer = zlib.compressobj(9, wbits=31)
    info = tarfile.TarInfo("zeros")
    info.size = 1 << 40
    data = packer.compress(info.tobuf())
    for _ in range(400):
        data += packer.compress(bytes(1 << 20))
    data += packer.flush()
    digest = image(source, pack=lambda _: data)
    assert "more than 100 times its size" in refused(source, digest, replace(LIMITS, ratio_from=1 << 24))
    assert "uncompressed" in refused(source, digest, replace(LIMITS, uncompressed=1 << 24))


def test_the_holes_of_a_sparse_file_count_as_disk() -> None:
    info = tarfile.TarInfo("sparse")
    info.pax_headers = {"GNU.sparse.realsize": str(1 << 36), "GNU.sparse.major": "1", "GNU.sparse.name": "sparse"}
    source = Memory()
    assert "unpacks to more than" in refused(source, image(source, [[info]]))


def test_size_and_entry_limits_hold_for_the_whole_image() -> None:
    source = Memory()
    digest = image(source, [[(f"f{i}", b"") for i in range(6)], [(f"g{i}", b"") for i in range(6)]])
    assert "more than 10 files" in refused(source, digest, replace(LIMITS, entries=10))
    assert admit(source, digest, replace(LIMITS, entries=12)).details["files"] == 12
    assert "compressed; at most" in refused(source, digest, replace(LIMITS, compressed=100))
    assert "uncompressed" in refused(source, digest, replace(LIMITS, uncompressed=10240))


def test_zstd_is_refused_with_the_mend_unless_it_is_allowed() -> None:
    source = Memory()

    def zstd(data: bytes) -> bytes:
        return subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout

    digest = image(source, [[("a", b"x" * 3_000_000)]], layer_type=ZSTD, pack=zstd)
    assert "--compression-format gzip" in refused(source, digest)
    allowed = replace(LIMITS, allow_zstd=True)
    assert admit(source, digest, allowed).details["uncompressed_size"] > 3_000_000
    damaged = image(source, layer_type=ZSTD, pack=lambda data: zstd(data)[:-9])
    assert "layer 1" in refused(source, damaged, allowed)


def test_gzip_data_declared_as_plain_tar_is_refused_since_engines_would_unpack_it() -> None:
    source = Memory()
    packed = gzip.compress(tar([("a", b"1")]))
    assert "declared an uncompressed tar" in refused(source, image(source, [packed], layer_type=TAR, pack=bytes))


@pytest.mark.parametrize(
    "archive",
    [
        b"this is no tar archive at all" * 40,
        tar([("a", b"x" * 5000)])[:2000],  # ends within a file
        tar([("a", b"")])[:300],  # ends within a header
        tar([("a", b"")])[:512] + bytes(512) + b"x" * 512,  # goes on after half an end mark
        special("x" * 10, tarfile.XHDTYPE).tobuf()[:124] + b"77777777777\0" + bytes(376),  # 8 GiB of extended header
    ],
)
def test_damaged_archives_are_refused(archive: bytes) -> None:
    source = Memory()
    assert refused(source, image(source, [archive])).startswith("layer 1 of the image")


def test_an_extended_header_is_not_read_into_memory_whole() -> None:
    info = special("x", tarfile.XHDTYPE)
    info.size = 1 << 33
    source = Memory()
    assert "longer than 1 MiB" in refused(source, image(source, [info.tobuf(tarfile.GNU_FORMAT)]))


def test_long_names_of_both_tar_dialects_are_checked() -> None:
    for dialect in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=dialect) as archive:
            archive.addfile(tarfile.TarInfo("d/" * 100 + "../" * 120 + "etc/passwd"))
        source = Memory()
        assert "leads out of its folder" in refused(source, image(source, [out.getvalue()]))


def test_ca_bundles_are_found_through_the_layers_as_they_end_up() -> None:
    certifi = "usr/lib/python3/site-packages/certifi/cacert.pem"
    base = [
        ("etc/ssl/certs/ca-certificates.crt", b"PEM"),
        (certifi, b"PEM"),
        ("opt/old/certifi/cacert.pem", b"PEM"),
        ("opt/gone/pip/_vendor/certifi/cacert.pem", b"PEM"),
        ("opt/link/certifi/cacert.pem", b"PEM"),
        ("opt/a:b/certifi/cacert.pem", b"PEM"),
    ]
    upper: Members = [
        ("opt/old/certifi/.wh.cacert.pem", b""),
        ("opt/gone/.wh..wh..opq", b""),
        special("opt/link", tarfile.SYMTYPE, "/opt/old"),
        ("./opt/conda/ssl/cacert.pem", b"PEM"),
        special("opt/hard/certifi/cacert.pem", tarfile.LNKTYPE, certifi),
        (certifi, b"PEM2"),
    ]
    source = Memory()
    bundles = admit(source, image(source, [base, upper]), LIMITS).details["ca_bundles"]
    assert bundles == [
        "/etc/ssl/certs/ca-certificates.crt",
        "/opt/conda/ssl/cacert.pem",
        "/opt/hard/certifi/cacert.pem",
        f"/{certifi}",
    ]


def test_a_folder_or_link_in_place_of_a_bundle_or_above_it_takes_it_away() -> None:
    lower = [("opt/a/certifi/cacert.pem", b"PEM"), ("opt/b/certifi/cacert.pem", b"PEM")]
    upper = [special("opt/a/certifi/cacert.pem", tarfile.DIRTYPE), special("opt/b", tarfile.DIRTYPE)]
    source = Memory()
    bundles = admit(source, image(source, [lower, upper]), LIMITS).details["ca_bundles"]
    assert bundles == ["/opt/b/certifi/cacert.pem"]


def test_endless_bundles_are_not_all_remembered_and_fifty_are_named() -> None:
    source = Memory(piece=1 << 16)
    many = [(f"opt/{i}/certifi/cacert.pem", b"") for i in range(1500)]
    assert len(admit(source, image(source, [many, many]), LIMITS).details["ca_bundles"]) == 50


def test_a_whiteout_hides_lower_layers_only() -> None:
    source = Memory()
    upper = [("opt/certifi/cacert.pem", b"new"), ("opt/certifi/.wh..wh..opq", b"")]
    digest = image(source, [[("opt/certifi/cacert.pem", b"old")], upper])
    assert admit(source, digest, LIMITS).details["ca_bundles"] == ["/opt/certifi/cacert.pem"]
    digest = image(source, [[("opt/certifi/cacert.pem", b"old")], [(".wh.opt", b"")]])
    assert admit(source, digest, LIMITS).details["ca_bundles"] == []


def test_a_scanner_gets_the_whole_image_and_its_last_line_refuses_it(tmp_path: Any) -> None:
    source = Memory()
    digest = image(source)
    look = (
        "import json,os,sys; i=json.load(open(sys.argv[1]+'/index.json')); "
        "n=len(os.listdir(sys.argv[1]+'/blobs/sha256'))"
    )
    good = Scanner(
        ("python3", "-c", f"{look}; sys.exit(not (n == 3 and i['manifests'][0]['digest'] == '{digest}'))"), tmp_path
    )
    assert admit(source, digest, LIMITS, good).digest == digest
    bad = Scanner(("sh", "-c", "echo checking; echo CVE-2025-1 is critical >&2; exit 3", "{layout}"), tmp_path)
    with pytest.raises(AdmissionError, match="CVE-2025-1 is critical"):
        admit(source, digest, LIMITS, bad)
    with pytest.raises(RegistryError, match="not installed"):
        admit(source, digest, LIMITS, Scanner(("no-such-scanner",), tmp_path))
    assert list(tmp_path.iterdir()) == []
