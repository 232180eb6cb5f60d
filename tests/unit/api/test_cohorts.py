"""Cohorts over HTTP, from a manifest to a dataset; nodes are played by the test, all else is real."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from jobs import run_cohort
from mhs_ray.auth.clients import hash_secret
from mhs_ray.cli.main import app
from mhs_ray.client import Client
from mhs_ray.client.cohorts import Cohort, Cohorts
from mhs_ray.client.errors import ApiError
from mhs_ray.cohorts.dataset import Dataset
from mhs_ray.cohorts.follow import progress_line, submit, watch
from mhs_ray.cohorts.manifest import Manifest, read_manifest
from mhs_ray.domain.env import EnvVar
from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.domain.failures import Failure, FailureCode
from mhs_ray.domain.models import Container, Role
from mhs_ray.domain.states import JobEvent
from mhs_ray.store.sql import tables as t
from tests.unit.api.conftest import Lab, problem

_NOT_BEGUN = ("queued", "waiting for a node")
NO_SIGN = Failure(FailureCode.EXIT_CODE, "the container exited with code 3", "read the log", "", 3)
UNREADABLE = Failure(FailureCode.SLIDE_UNREADABLE, "the slide is damaged", "look at it")


class Bench:
    """A lab that runs cohorts: its client, its container, and the levers of its nodes."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.service = lab.server.core.cohorts
        self.container: Container = lab.world.container(lab.id, name="nuclei")
        lab.server.core.clients.add(f"cohort-{lab.id}", lab.id, "Ada", Role.LAB_USER, hash_secret("s3cret"))
        self.client = Client(lab.server.url, f"cohort-{lab.id}", "s3cret", sleep=lambda _s: None)
        self.cohorts = Cohorts(self.client)
        self.said: list[str] = []

    def slide(self, name: str, content: bytes | None = None) -> Path:
        """Write what looks like a slide at first sight."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"II*\0" + (content if content is not None else name.encode()) * 50)
        return path

    def manifest(self, *names: str, more: str = "") -> Manifest:
        for name in names:
            if not (self.folder / name).exists():
                self.slide(name)
        (self.folder / "m.csv").write_text("slide\n" + "".join(f"{n}\n" for n in names) + more)
        return read_manifest(self.folder / "m.csv")

    def submit(self, manifest: Manifest, **options: Any) -> Cohort:
        values = {"key": "run-1", "container": "nuclei", "canary": 2, **options}
        return submit(self.cohorts, manifest, say=self.said.append, **values)

    def step(self) -> None:
        self.service.step()

    def run(self, end: Failure | None = None, only: int | None = None, geojson: bool = True) -> list[int]:
        """Let queued jobs of the lab run to their end; returns their ids."""
        ended = []
        with self.lab.server.core.db.read() as conn:
            query = sa.select(t.jobs.c.id).where(t.jobs.c.company_id == self.lab.id, t.jobs.c.state.in_(_NOT_BEGUN))
            ids = list(conn.execute(query.order_by(t.jobs.c.id).limit(only or 1000)).scalars())
        for job_id in ids:
            job = self.lab.run(job_id)
            jobs, attempt = self.lab.world.jobs, job.attempt
            if end is None:
                with self.lab.server.container(job) as model:
                    body = _results(str(job.scan_number), geojson)
                    answer = model.post(f"/api/v3/external/results/{job.task_number}", json=body)
                    assert answer.status_code == 201, answer.text
            jobs.transition(job_id, JobEvent.EXITED, attempt=attempt)
            event = JobEvent.SUCCEEDED if end is None else JobEvent.FAILED
            jobs.transition(job_id, event, attempt=attempt, failure=end)
            ended.append(job_id)
        return ended

    def counts(self, cohort: Cohort) -> dict[str, int]:
        return {k: n for k, n in self.cohorts.get(cohort["id"])["counts"].items() if n}

    def state(self, cohort: Cohort) -> str:
        return self.cohorts.get(cohort["id"])["state"]


def _results(scan_id: str, geojson: bool) -> dict[str, Any]:
    feature = {
        "type": "Feature", "properties": {"annotation_type": "nucleus"},
        "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]},
    }  # fmt: skip
    scan: dict[str, Any] = {"scanId": scan_id, "results": {"count": 1, "summary": "one nucleus"}}
    if geojson:
        scan["geojson"] = {"type": "FeatureCollection", "features": [feature]}
    return {"caseResults": {"score": 4}, "scanResults": [scan]}


@pytest.fixture
def bench(lab: Lab, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(lab, tmp_path)
    yield made
    made.client.close()


# ------------------------------------------------------------ the way of a cohort


def test_a_cohort_runs_its_canary_then_the_rest_and_becomes_a_dataset(bench: Bench) -> None:
    cohort = bench.submit(bench.manifest(*(f"s{i}.svs" for i in range(6))))
    assert (cohort["state"], cohort["rows"], cohort["received"]) == ("canary", 6, 6)
    bench.step()
    assert bench.counts(cohort) == {"pending": 4, "under_way": 2}
    jobs = [bench.lab.world.jobs.find(i) for i in bench.run()]
    assert {j.priority for j in jobs} == {"research"}
    assert {j.image_digest for j in jobs} == {cohort["image_digest"]}
    assert len({j.task_id for j in jobs}) == 2, "case results are a task's: each slide has its own"
    bench.step()
    assert bench.state(cohort) == "running"
    assert bench.counts(cohort) == {"succeeded": 2, "under_way": 4}
    dataset = Dataset(bench.cohorts, cohort["id"], bench.folder / "out")
    assert dataset.pull() == 2, "results are there as soon as slides end"
    bench.run()
    bench.step()
    bench.step()
    lines: list[str] = []
    ended = watch(
        bench.cohorts, cohort["id"], dataset=dataset, on_change=lambda c: lines.append(progress_line(c)), every_s=0
    )
    assert (ended["state"], ended["counts"]["succeeded"]) == ("done", 6)
    assert "6 succeeded of 6" in lines[-1]
    assert cohort["id"] not in {c.id for c in bench.service.cohorts.at_work()}, "nothing is left to do"

    out = bench.folder / "out"
    table = ds.dataset(out / "features", partitioning="hive").to_table()
    assert sorted(table["slide"].to_pylist()) == [f"s{i}" for i in range(6)]
    slides = pq.read_table(out / "slides.parquet").to_pylist()
    assert [(s["id"], s["row"], s["state"], s["features"]) for s in slides][:2] == [
        ("s0", 1, "succeeded", 1), ("s1", 2, "succeeded", 1),
    ]  # fmt: skip
    assert json.loads(slides[0]["results"])["summary"] == "one nucleus"
    assert json.loads(slides[0]["case_results"]) == {"score": 4}
    drawn = json.loads((out / "geojson" / "s3.geojson").read_text())
    assert drawn["features"][0]["properties"]["objectType"] == "annotation"
    project = json.loads((out / "qupath" / "project.qpproj").read_text())
    assert [i["imageName"] for i in project["images"]] == [f"s{i}" for i in range(6)]
    assert json.loads((out / "qupath" / "results.json").read_text())["s3"] == "../geojson/s3.geojson"
    assert Dataset(bench.cohorts, cohort["id"], out).pull() == 0, "what is there is not fetched again"


def test_a_canary_that_fails_stops_the_cohort_and_resume_tries_it_again(bench: Bench) -> None:
    cohort = bench.submit(bench.manifest(*(f"s{i}.svs" for i in range(6))))
    bench.step()
    bench.run(NO_SIGN, only=1)
    bench.step()
    stopped = bench.cohorts.get(cohort["id"])
    assert stopped["state"] == "stopped"
    assert stopped["reason"] == (
        "a canary slide failed: exit-code: the container exited with code 3; nothing else was started"
    )
    bench.run()  # the other canary slide ends by itself
    bench.step()
    assert bench.counts(cohort) == {"pending": 4, "failed": 1, "succeeded": 1}
    with pytest.raises(ApiError, match="resume a stopped"):
        bench.cohorts.rerun(cohort["id"])
    assert bench.cohorts.resume(cohort["id"])["state"] == "canary"
    bench.step()
    assert bench.counts(cohort) == {"pending": 4, "under_way": 1, "succeeded": 1}
    bench.run()
    bench.step()
    assert bench.counts(cohort) == {"under_way": 4, "succeeded": 2}


def test_one_bad_slide_never_stops_a_cohort_and_rerun_runs_what_failed(bench: Bench) -> None:
    cohort = bench.submit(bench.manifest(*(f"s{i}.svs" for i in range(5))))
    bench.step()
    bench.run(UNREADABLE, only=1)
    bench.step()
    assert bench.counts(cohort) == {"pending": 2, "under_way": 2, "failed": 1}
    bench.run()
    bench.step()
    bench.run(NO_SIGN)
    bench.step()
    bench.step()
    assert bench.state(cohort) == "done"
    assert bench.counts(cohort) == {"failed": 3, "succeeded": 2}
    spent = bench.cohorts.get(cohort["id"])["forecast"]
    assert spent["gpu_s"] > 0
    assert spent["spent"] == pytest.approx(spent["gpu_s"] * 0.526 / 3600)
    again = bench.cohorts.rerun(cohort["id"])
    assert (again["state"], again["ended_at"]) == ("running", None)
    bench.step()
    assert len(bench.run()) == 3
    bench.step()
    bench.step()
    assert bench.counts(cohort) == {"succeeded": 5}
    assert bench.cohorts.get(cohort["id"])["forecast"]["gpu_s"] > spent["gpu_s"], "the failed attempts cost, too"


def test_cancel_ends_what_runs_and_resume_goes_on(bench: Bench) -> None:
    cohort = bench.submit(bench.manifest(*(f"s{i}.svs" for i in range(4))), canary=0)
    bench.step()
    bench.run(only=1)
    cancelled = bench.cohorts.cancel(cohort["id"])
    assert (cancelled["state"], cancelled["reason"]) == ("cancelled", "cancelled by Ada")
    bench.step()
    assert bench.counts(cohort) == {"succeeded": 1, "cancelled": 3}
    assert bench.run() == []
    bench.cohorts.resume(cohort["id"])
    bench.step()
    assert len(bench.run()) == 3
    bench.step()
    bench.step()
    assert (bench.state(cohort), bench.counts(cohort)) == ("done", {"succeeded": 4})
    with pytest.raises(ApiError, match="nothing to cancel"):
        bench.cohorts.cancel(cohort["id"])


# ------------------------------------------------------------ doubles


def test_the_same_bytes_are_run_once_and_told_as_duplicates(bench: Bench) -> None:
    bench.slide("a.svs", b"same")
    bench.slide("copy/b.svs", b"same")
    first = bench.submit(bench.manifest("a.svs", "copy/b.svs", "c.svs"), canary=0)
    for _ in range(3):
        bench.step()
        bench.run()
    assert bench.counts(first) == {"succeeded": 2, "duplicate": 1}
    dataset = Dataset(bench.cohorts, first["id"], bench.folder / "out")
    assert dataset.pull() == 3, "a duplicate has the result of its twin"

    again = bench.submit(bench.manifest("a.svs", "c.svs", "d.svs"), key="run-2", canary=0)
    bench.step()
    assert bench.counts(again) == {"duplicate": 2, "under_way": 1}
    (double, *_) = [s for s in bench.cohorts.slides(again["id"]) if s["id"] == "a"]
    assert double["cause"] == f"the same work as 'a' in cohort {first['id']}: job {double['job_id']}"
    other = bench.lab.world.container(bench.lab.id, name="other env", env=[EnvVar("THRESHOLD", "0.9")])
    third = bench.submit(bench.manifest("a.svs", "c.svs"), key="run-3", canary=0, container=str(other.id))
    fourth = bench.submit(bench.manifest("a.svs", "c.svs"), key="run-4", canary=0, skip_known=False)
    bench.step()
    assert bench.counts(third) == {"under_way": 2}, "other variables are other work"
    assert bench.counts(fourth) == {"under_way": 2}


def test_an_interrupted_submission_goes_on_without_doubles(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mhs_ray.client.cohorts.PIECE", 3)
    manifest = bench.manifest(*(f"s{i}.svs" for i in range(8)))
    sent = 0
    real = bench.cohorts._send

    def breaks(method: str, path: str, *args: Any, **params: Any) -> Any:
        nonlocal sent
        if path.endswith("/slides"):
            sent += 1
            if sent == 2:
                real(method, path, *args, **params)  # it arrived, the answer did not
                raise KeyboardInterrupt
        return real(method, path, *args, **params)

    monkeypatch.setattr(bench.cohorts, "_send", breaks)
    with pytest.raises(KeyboardInterrupt):
        bench.submit(manifest, canary=0)
    cohort = bench.submit(manifest, canary=0)
    assert "6 of 8 rows came before" in bench.said[-2]
    assert (cohort["received"], sent) == (8, 3)
    for _ in range(2):
        bench.step()
    assert bench.submit(manifest, canary=0)["id"] == cohort["id"], "the same command once more is the same cohort"
    bench.step()
    assert len(bench.run()) == 8
    bench.slide("s9.svs")
    with pytest.raises(ApiError, match="another manifest or container"):
        bench.submit(bench.manifest("s0.svs", "s9.svs"))


# ------------------------------------------------------------ bad input


def test_every_fault_of_a_manifest_is_told_at_once_and_nothing_runs(bench: Bench) -> None:
    (bench.folder / "page.svs").write_text("<!DOCTYPE html><title>sign in</title>")
    (bench.folder / "empty.svs").write_bytes(b"")
    manifest = bench.manifest(
        "a.svs", "b.svs", "n.ndpi",
        more="gone.svs\na.svs\npage.svs\nempty.svs\nftp://h/x.svs\nscan:99999\ns3://their-bucket/x.svs\n",
    )  # fmt: skip
    with pytest.raises(InvalidInputError) as refused:
        bench.submit(manifest)
    told = {f.path: f.message for f in refused.value.faults}
    assert list(told) == sorted(told, key=lambda p: int(p.split()[1].strip(",")))
    assert "it is ndpi while 2 of 3 slides are svs" in told["row 3, slide"]
    assert "there is no file" in told["row 4, slide"]
    assert told["row 5, id"].startswith("'a' is also the id of row 1")
    assert "a web page" in told["row 6, slide"]
    assert told["row 7, slide"] == "empty.svs is empty"
    assert "ftp:// is not read" in told["row 8, slide"]
    assert told["row 9, slide"] == "there is no scan 99999"
    assert "MHS_SLIDES__S3_BUCKETS" in told["row 10, slide"]
    assert list(bench.cohorts.list()) == [], "nothing is left of it"
    bench.step()
    assert bench.run() == []


def test_the_server_too_refuses_to_start_what_has_faults_or_is_not_whole(bench: Bench) -> None:
    manifest = bench.manifest("a.svs", "n.ndpi")
    cohort = bench.cohorts.create(manifest, key="k", container="nuclei")
    answer = bench.lab.http.post(f"/v1/cohorts/{cohort['id']}/start", json={})
    problem(answer, 409, "conflict")
    assert "0 of the 2 rows" in answer.json()["detail"]
    bench.cohorts.send_rows(cohort, manifest)
    answer = bench.lab.http.post(f"/v1/cohorts/{cohort['id']}/start", json={})
    assert problem(answer, 422, "invalid-input") == ["row 2, slide"]
    body = {"rows": [{"row": 3, "id": "x", "slide": "/x"}]}
    faults = bench.lab.http.post(f"/v1/cohorts/{cohort['id']}/slides", json=body).json()["faults"]
    assert faults == [{"row": 3, "column": "row", "reason": "the manifest has 2 rows"}]


def test_bad_slides_can_be_left_out_and_formats_mixed_on_demand(bench: Bench) -> None:
    manifest = bench.manifest("a.svs", "n.ndpi", more="gone.svs\n")
    cohort = bench.submit(manifest, leave_out_bad=True, mixed_formats=True, canary=0)
    bench.step()
    assert bench.counts(cohort) == {"under_way": 2, "left_out": 1}
    assert bench.submit(bench.manifest("a.svs"), key="check", check_only=True)["received"] == 1
    assert [c["key"] for c in bench.cohorts.list()] == ["run-1"]


def test_a_container_that_is_not_there_or_not_one_is_named(bench: Bench) -> None:
    bench.lab.world.container(bench.lab.id, name="nuclei")
    manifest = bench.manifest("a.svs")
    for name, told in (("nuclei", "2 containers are called"), ("none", "there is no runnable container")):
        with pytest.raises(ApiError, match=told) as refused:
            bench.cohorts.create(manifest, key="k", container=name)
        assert refused.value.status == 422


# ------------------------------------------------------------ who may


def test_another_company_sees_nothing_of_a_cohort_and_a_viewer_only_looks(bench: Bench, other_lab: Lab) -> None:
    cohort = bench.submit(bench.manifest("a.svs"))
    at = f"/v1/cohorts/{cohort['id']}"
    for path in (at, f"{at}/slides", f"{at}/faults"):
        problem(other_lab.http.get(path), 404, "not-found")
    for verb in ("cancel", "resume", "rerun"):
        problem(other_lab.http.post(f"{at}/{verb}"), 404, "not-found")
    assert other_lab.http.get("/v1/cohorts").json()["items"] == []
    with bench.lab.viewer() as viewer:
        assert viewer.get(at).json()["id"] == cohort["id"]
        problem(viewer.post(f"{at}/cancel"), 403, "forbidden")
        problem(viewer.post("/v1/cohorts", json={}), 403, "forbidden")
        assert viewer.get("/v1/prices").json()["per_hour"]["g4dn.xlarge"] == 0.526


def test_no_presigned_query_of_a_slide_is_ever_shown(bench: Bench) -> None:
    url = "https://127.0.0.1:9/a.svs?X-Amz-Signature=s3cret"
    cohort = bench.cohorts.create(bench.manifest("a.svs"), key="k", container="nuclei")
    body = {"rows": [{"row": 1, "id": "a", "slide": url}]}
    answer = bench.lab.http.post(f"/v1/cohorts/{cohort['id']}/slides", json=body)
    assert len(answer.json()["faults"]) == 1
    shown = bench.lab.http.get(f"/v1/cohorts/{cohort['id']}/slides").text
    assert "s3cret" not in answer.text + shown
    assert "https://127.0.0.1:9/a.svs" in shown


def _page(lab: Lab, path: str, role: Role = Role.LAB_USER) -> httpx.Response:
    client_id = f"page-{lab.id}-{role.name}"
    lab.server.core.clients.add(client_id, lab.id, "Pia", role, hash_secret("pw"))
    with httpx.Client(base_url=lab.server.url, follow_redirects=True) as browser:
        browser.post("/console/sign-in", data={"client_id": client_id, "client_secret": "pw"})
        return browser.get(path)


def test_the_console_shows_cohorts_and_lets_those_who_may_act(bench: Bench) -> None:
    cohort = bench.submit(bench.manifest("a.svs", "b.svs", more=""), name="Lung <1>")
    bench.step()
    bench.run(NO_SIGN, only=1)
    bench.step()
    listed = _page(bench.lab, "/console/cohorts").text
    assert "Lung &lt;1&gt;" in listed
    shown = _page(bench.lab, f"/console/cohorts/{cohort['id']}").text
    for piece in ("a canary slide failed", "exit-code", "Resume", "50 %", "0.526 USD an hour"):
        assert piece in shown, piece
    seen = _page(bench.lab, f"/console/cohorts/{cohort['id']}", Role.VIEWER).text
    assert "exit-code" in seen
    assert "Resume" not in seen


# ------------------------------------------------------------ the command line and the Ray job


@pytest.fixture
def shell(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The bench, with the environment by which commands find it."""
    monkeypatch.setenv("MHS_URL", bench.lab.server.url)
    monkeypatch.setenv("MHS_CLIENT_ID", f"cohort-{bench.lab.id}")
    monkeypatch.setenv("MHS_CLIENT_SECRET", "s3cret")
    return bench


def _mhs(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["cohort", *arguments, "--json"])
    return result.exit_code, json.loads(result.stdout)


def test_the_commands_do_what_the_api_does(shell: Bench) -> None:
    shell.manifest("a.svs", "b.svs", "c.svs")
    manifest = str(shell.folder / "m.csv")
    code, checked = _mhs("submit", manifest, "--container", "nuclei", "--check")
    assert (code, checked["received"]) == (0, 3)
    code, made = _mhs("submit", manifest, "--container", "nuclei", "--canary", "1")
    assert (code, made["key"], made["state"], made["canary"]) == (0, "m", "canary", 1)
    shell.step()
    shell.run(NO_SIGN, only=1)
    shell.step()
    number = str(made["id"])
    assert _mhs("list")[1][0]["state"] == "stopped"
    assert [s["failure_code"] for s in _mhs("status", number, "--failures")[1]] == ["exit-code"]
    assert _mhs("resume", number)[1]["state"] == "canary"
    assert _mhs("cancel", number)[1]["state"] == "cancelled"
    shell.step()
    code, refused = _mhs("rerun", number)
    assert (code, refused["type"]) == (1, "/problems/conflict")
    assert _mhs("resume", number)[0] == 0
    for _ in range(3):
        shell.step()
        shell.run()
    code, written = _mhs("results", number, "-o", str(shell.folder / "out"))
    assert (code, written["slides"], written["state"]) == (0, 3, "done")
    assert _mhs("prices")[1]["currency"] == "USD"
    shown = CliRunner().invoke(app, ["cohort", "status", number]).stdout
    assert "3 succeeded" in shown
    assert "USD spent" in shown
    other = shell.submit(shell.manifest("z.svs"), key="another")
    code, refused = _mhs("results", str(other["id"]), "-o", str(shell.folder / "out"))
    assert code == 1
    assert "another cohort" in refused["detail"]


def test_a_bad_manifest_leaves_the_command_with_every_fault(shell: Bench) -> None:
    shell.manifest("a.svs", more="gone.svs\na.svs\n")
    code, told = _mhs("submit", str(shell.folder / "m.csv"), "--container", "nuclei")
    assert code == 1
    assert [e["path"] for e in told["errors"]] == ["row 2, slide", "row 3, id", "row 3, slide"]


def test_the_ray_job_stays_to_the_end_and_writes_the_results(
    shell: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mhs_ray.cohorts.follow._AGAIN_S", 0.05)
    shell.manifest("a.svs", "b.svs", more="gone.svs\n")
    arguments = ["--manifest", str(shell.folder / "m.csv"), "--container", "nuclei", "--canary", "1"]
    assert run_cohort.main(arguments) == 2
    assert "run_cohort: row 3, slide: there is no file" in capsys.readouterr().err

    ended = threading.Event()

    def nodes() -> None:
        while not ended.wait(0.05):
            shell.step()
            shell.run()

    thread = threading.Thread(target=nodes)
    thread.start()
    try:
        code = run_cohort.main([*arguments, "--leave-out-bad", "--out", str(shell.folder / "out")])
    finally:
        ended.set()
        thread.join()
    said = capsys.readouterr()
    assert code == 0, said.err
    document = json.loads(said.out.splitlines()[-1])
    assert (document["state"], document["counts"]["succeeded"], document["counts"]["left_out"]) == ("done", 2, 1)
    states = {s["id"]: s["state"] for s in pq.read_table(shell.folder / "out" / "slides.parquet").to_pylist()}
    assert states == {"a": "succeeded", "b": "succeeded", "gone": "left out"}
