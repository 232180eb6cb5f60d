"""The command line against a server that the test writes down, and what works without any."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from mhs_ray.cli import doctor
from mhs_ray.cli.main import app
from mhs_ray.domain.settings import Settings
from tests.fake_api import Answer, FakeApi, events, fake_api, job, ok, problem

runner = CliRunner()
FAILURE = {
    "failure_class": "model", "code": "exit-code", "cause": "the container exited with code 3",
    "mend": "read the log", "excerpt": "ValueError: 42", "exit_code": 3,
}  # fmt: skip


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeApi]:
    with fake_api() as running:
        monkeypatch.setenv("MHS_URL", running.url)
        monkeypatch.setenv("MHS_CLIENT_ID", "me")
        monkeypatch.setenv("MHS_CLIENT_SECRET", "s3cret")
        monkeypatch.setenv("MHS_HOME", str(tmp_path / "home"))
        yield running


def mhs(*args: str, stdin: str | None = None) -> Result:
    return runner.invoke(app, list(args), input=stdin)


def document(result: Result) -> Any:
    """What a program reads: stdout is one JSON document."""
    return json.loads(result.stdout)


# ---- every command


def commands(group: Any = None, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    group = group or typer.main.get_command(app)
    found = []
    for name, command in group.commands.items():
        here = (*path, name)
        found += commands(command, here) if hasattr(command, "commands") else [here]
    return found


def test_there_is_every_command_that_was_promised() -> None:
    promised = (
        "client/create client/list client/revoke company/create company/list company/update company/on company/off "
        "webhook-secret/create webhook-secret/remove audit-log "
        "up down status doctor demo bench init base-image submit jobs tasks logs results image/create image/push "
        "image/list image/show image/instructions image/rename image/delete image/versions container/create "
        "container/list container/show container/update container/delete algorithm/create algorithm/list "
        "algorithm/show algorithm/update algorithm/delete scan/add scan/list scan/show scan/url scan/delete job/show "
        "job/events job/cancel job/rerun usage backup restore upgrade "
        "cohort/submit cohort/list cohort/status cohort/cancel cohort/resume "
        "cohort/rerun cohort/results cohort/prices"
    )
    assert {"/".join(c) for c in commands()} >= set(promised.split())


@pytest.mark.parametrize("path", commands(), ids="/".join)
def test_every_command_has_help_and_speaks_json(path: tuple[str, ...]) -> None:
    shown = mhs(*path, "--help")
    assert shown.exit_code == 0
    assert "--json" in shown.stdout


# ---- answers and errors


def test_a_list_is_one_json_document(api: FakeApi) -> None:
    api.on("GET", "/v1/jobs", ok({"items": [job(2), job(1)], "next_cursor": None}))
    result = mhs("jobs", "--state", "failed", "--state", "timed out", "--limit", "5", "--json")
    assert [j["id"] for j in document(result)] == [2, 1]
    (asked,) = api.seen
    assert asked.query == {"state": ["failed", "timed out"], "limit": ["5"]}
    assert asked.headers["authorization"] == "Basic " + base64.b64encode(b"me:s3cret").decode()


def test_a_pipe_gets_tab_separated_lines(api: FakeApi) -> None:
    api.on("GET", "/v1/jobs", ok({"items": [job(2, failure={**FAILURE, "cause": "a\tb\nc"})], "next_cursor": None}))
    head, row = mhs("jobs").stdout.splitlines()
    assert head.split("\t")[:2] == ["id", "state"]
    assert row.split("\t")[0] == "2"
    assert row.endswith("\ta b c")


def test_a_refusal_is_the_apis_own_problem_document(api: FakeApi) -> None:
    api.on("GET", "/v1/jobs/9", problem(404, "not-found", "there is no job 9"))
    result = mhs("job", "show", "9", "--json")
    assert result.exit_code == 1
    assert document(result)["type"] == "/problems/not-found"
    in_words = mhs("job", "show", "9")
    assert (in_words.exit_code, in_words.stdout) == (1, "")
    assert "there is no job 9" in in_words.stderr


def test_every_fault_of_a_request_is_named(api: FakeApi) -> None:
    faults = [{"path": "$.a", "message": "is bad"}, {"path": "$.b", "message": "is worse"}]
    answer = {"type": "/problems/invalid-input", "title": "The request has faults", "detail": "…", "errors": faults}
    api.on("POST", "/v1/containers", ok(answer, 422))
    said = mhs("container", "create", "--image", "1").stderr
    assert "$.a: is bad" in said
    assert "$.b: is worse" in said


def test_without_a_platform_it_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MHS_URL", raising=False)
    monkeypatch.setenv("MHS_HOME", str(tmp_path))
    for command in (["jobs"], ["status"], ["image", "create", "x"]):
        result = mhs(*command)
        assert result.exit_code == 3
        assert "start it with `mhs up`" in result.stderr
    assert document(mhs("status", "--json"))["running"] is False
    assert mhs("down", "--json").exit_code == 0


def test_a_platform_that_does_not_answer_is_exit_code_3(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _s: None)
    monkeypatch.setenv("MHS_URL", "http://127.0.0.1:1")
    result = mhs("job", "cancel", "1", "--json")
    assert result.exit_code == 3
    assert document(result)["type"] == "/problems/unreachable"


def test_half_a_credential_is_named(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MHS_CLIENT_SECRET")
    assert "MHS_CLIENT_SECRET" in mhs("jobs").stderr


def test_a_misspelt_setting_is_an_error_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MHS_ENGIN", "docker")
    result = mhs("doctor", "--settings", "--json")
    assert result.exit_code == 1
    assert document(result)["errors"][0]["path"] == "MHS_ENGIN"


def test_wrong_use_with_json_is_a_problem_document_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["mhs", "jobs", "--json", "--nope"])
    with pytest.raises(SystemExit) as ended:
        app()
    assert ended.value.code == 2
    assert "--nope" in json.loads(capsys.readouterr().out)["detail"]


# ---- submit, logs, results


def test_waiting_for_a_job_that_fails_is_exit_code_4_and_shows_the_card(api: FakeApi) -> None:
    api.on("POST", "/v1/tasks", ok({"task_id": "7", "job_ids": [1], "created": True}, 201))
    api.on("GET", "/v1/jobs/1", ok(job(state="running")), ok(job(state="failed", failure=FAILURE)))
    result = mhs("submit", "A", "--scan", "1", "--scan", "2", "--wait")
    assert result.exit_code == 4
    for words in ("the container exited with code 3", "ValueError: 42", "read the log"):
        assert words in result.stdout
    assert api.calls("POST", "/v1/tasks")[0].json["scan_ids"] == [1, 2]


def test_an_algorithm_is_named_or_numbered(api: FakeApi) -> None:
    api.on("POST", "/v1/tasks", ok({"task_id": "7", "job_ids": [1], "created": True}, 201))
    mhs("submit", "Mitosis count", "-s", "1")
    mhs("submit", "12", "-s", "1")
    bodies = [r.json for r in api.seen]
    assert bodies[0]["algorithm"] == "Mitosis count"
    assert bodies[1]["algorithm_id"] == 12


def test_a_followed_log_comes_line_by_line_as_json(api: FakeApi) -> None:
    lines = [f'id: {n}\ndata: {{"line": {n}, "at": "t", "source": "stderr", "text": "é"}}' for n in range(2)]
    api.on("GET", "/v1/jobs/1", ok(job()))
    api.on("GET", "/v1/jobs/1/log", events(*lines, "event: end\ndata: {}"))
    result = mhs("logs", "1", "-f", "--json")
    assert [json.loads(x)["number"] for x in result.stdout.splitlines()] == [0, 1]
    assert result.exit_code == 0


def test_results_go_to_a_file_whole_or_not_at_all(api: FakeApi, tmp_path: Path) -> None:
    out = tmp_path / "r.geojson"
    api.on("GET", "/v1/jobs/1/results", Answer(200, b'{"type":"FeatureCollection"}'))
    result = mhs("results", "1", "-o", str(out), "--json")
    assert document(result) == {"path": str(out), "bytes": 28, "format": "geojson"}
    assert api.seen[0].query == {"format": ["geojson"]}
    api.on("GET", "/v1/jobs/1/results", Answer(200, b"half", {"Content-Length": "100"}))
    assert mhs("results", "1", "-o", str(out)).exit_code == 3
    assert out.read_bytes() == b'{"type":"FeatureCollection"}'
    assert [p.name for p in tmp_path.iterdir()] == ["r.geojson"]


@pytest.mark.parametrize("args", [[], ["1", "--task", "7"], ["1", "--format", "xml"], ["1", "-o", "x.zip"]])
def test_odd_wishes_for_results_are_refused_before_anything_is_asked(api: FakeApi, args: list[str]) -> None:
    assert mhs("results", *args).exit_code == 1
    assert api.seen == []


# ---- containers, scans


def test_a_secret_value_comes_from_stdin_and_is_not_echoed(api: FakeApi) -> None:
    made = {
        "id": 1, "name": "C", "env": [{"name": "TOKEN", "value": None, "secret": True}],
        "created_at": "2026-01-31T12:00:00Z", "updated_at": "2026-01-31T12:00:00Z",
    }  # fmt: skip
    api.on("POST", "/v1/containers", ok(made, 201))
    result = mhs("container", "create", "--image", "1", "-e", "A=b=c", "--secret-env", "TOKEN", stdin="hush\n")
    assert api.seen[0].json["env"] == [
        {"name": "A", "value": "b=c"},
        {"name": "TOKEN", "value": "hush", "secret": True},
    ]
    assert "hush" not in result.output
    assert mhs("container", "create", "--image", "1", "--secret-env", "T", stdin="").exit_code == 1


def test_a_local_platform_is_told_the_path_and_an_upload_is_asked_for(api: FakeApi, tmp_path: Path) -> None:
    slide = tmp_path / "s.svs"
    slide.write_bytes(b"II*\0")
    scan = {
        "id": 1, "scan_id": "1000000001", "name": "s", "status": "ready", "failure_message": "", "source": "path",
        "size_bytes": 4, "facts": {}, "created_by": "local", "created_at": "2026-01-31T12:00:00Z",
    }  # fmt: skip
    api.on("POST", "/v1/scans", ok(scan, 201))
    mhs("scan", "add", str(slide))
    assert api.seen[0].json == {"path": str(slide)}
    mhs("scan", "add", "https://example.com/s.svs?sig=1", "--name", "n")
    assert api.seen[1].json == {"url": "https://example.com/s.svs?sig=1", "name": "n"}
    assert mhs("scan", "add", str(tmp_path / "nothing")).exit_code == 1
    assert mhs("scan", "add", str(tmp_path), "--upload").exit_code == 1
    assert len(api.seen) == 2


# ---- without any platform


def test_init_writes_the_template_and_never_over_something(tmp_path: Path) -> None:
    made = document(mhs("init", str(tmp_path / "m"), "--json"))
    assert {"main.py", "Dockerfile"} <= set(made["files"])
    assert (tmp_path / "m" / "main.py").exists()
    assert "not empty" in mhs("init", str(tmp_path / "m")).stderr
    assert "plain" in mhs("init", str(tmp_path / "n"), "--template", "nope").stderr


def test_doctor_says_how_to_get_what_is_missing() -> None:
    check = doctor._program("no-such-program", "a-package", "does things", needed=True)
    assert (check.state, check.mend) == ("missing", "apt-get install -y a-package")
    assert doctor._program("sh", "dash", "is a shell", needed=True).state == "ok"


def test_settings_are_listed_without_secrets(tmp_path: Path) -> None:
    rows = {
        r["variable"]: r
        for r in doctor.setting_rows(Settings(database_url="postgresql://u:hush@db/x", home=tmp_path))  # type: ignore[arg-type]
    }
    assert rows["MHS_API__PORT"] == {"variable": "MHS_API__PORT", "value": 8080, "from": "default"}
    assert rows["MHS_DATABASE_URL"] == {"variable": "MHS_DATABASE_URL", "value": "(hidden)", "from": "environment"}


def test_an_unknown_benchmark_is_refused_with_those_there_are() -> None:
    assert "is no benchmark" in mhs("bench", "nope").stderr


def test_usage_is_shown_or_written_as_parquet(api: FakeApi, tmp_path: Path) -> None:
    row = {
        "day": "2026-03-02", "company_id": 1, "company": "North", "instance_type": "g5.2xlarge", "attempts": 3,
        "jobs": 2, "failed": 0, "gpu_s": 7200.0, "platform_gpu_s": 0.0,
    }  # fmt: skip
    usage = {"since": "2026-03-01", "until": "2026-03-31", "items": [row]}
    api.on("GET", "/v1/usage", ok(usage))
    assert document(mhs("usage", "--since", "2026-03-01", "--json")) == usage
    shown = mhs("usage")
    assert "g5.2xlarge" in shown.stdout
    assert "2.00 GPU-hours" in shown.stderr
    file = tmp_path / "march.parquet"
    assert document(mhs("usage", "-o", str(file), "--json"))["file"] == str(file)
    assert file.stat().st_size > 0
    assert mhs("usage", "-o", "march.xls").exit_code == 1


# ---- who has access


def test_a_client_is_made_with_its_role_and_its_secret_shown_once(api: FakeApi) -> None:
    client = {
        "id": "mhs-7", "company_id": 1, "name": "LIMS", "role": "Viewer", "created_by": "me",
        "created_at": "2026-03-02T09:26:53Z", "last_used_at": None, "revoked_at": None,
    }  # fmt: skip
    api.routes["POST", "/v1/clients"] = [ok({"client": client, "client_secret": "once-s3cret"}, 201)]
    result = mhs("client", "create", "LIMS", "--role", "Viewer")
    assert result.exit_code == 0
    assert "once-s3cret" in result.stdout
    assert api.seen[-1].json == {"name": "LIMS", "role": "Viewer", "company_id": None}
    api.routes["POST", "/v1/clients/mhs-7/revoke"] = [ok(client | {"revoked_at": "2026-03-02T09:31:07Z"})]
    assert document(mhs("client", "revoke", "mhs-7", "--json"))["revoked_at"]


def test_a_company_is_switched_off_and_on(api: FakeApi) -> None:
    company = {"id": 3, "name": "North Lab", "mhs_enabled": False}
    api.routes["PATCH", "/v1/companies/3"] = [ok(company)]
    assert document(mhs("company", "off", "3", "--json")) == company
    assert api.seen[-1].json == {"mhs_enabled": False}
    mhs("company", "on", "3")
    assert api.seen[-1].json == {"mhs_enabled": True}
    assert mhs("company", "update", "3").exit_code == 1
