"""Settings from the environment; a misspelt name is an error."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest

from mhs_ray.domain.errors import InvalidInputError
from mhs_ray.domain.settings import as_node, client_environment, for_nodes, load_settings, settings_with


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("MHS_") or name == "DOCKER_HOST":
            monkeypatch.delenv(name)


def _faults() -> dict[str, str]:
    with pytest.raises(InvalidInputError) as caught:
        load_settings()
    return {f.path: f.message for f in caught.value.faults}


def test_without_any_setting_everything_has_a_value() -> None:
    settings = load_settings()
    assert settings.jobs.max_time_limit == timedelta(minutes=90)
    assert settings.api.max_body == 8 << 20
    assert settings.sql_url == f"sqlite:///{settings.home}/mhs.db"


def test_two_underscores_enter_a_section(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MHS_HOME", str(tmp_path))
    monkeypatch.setenv("MHS_API__PORT", "9000")
    monkeypatch.setenv("mhs_jobs__max_log", "1MiB")
    monkeypatch.setenv("MHS_CLUSTER__INSTANCE_TYPES", '["g4dn.xlarge"]')
    settings = load_settings()
    assert (settings.home, settings.api.port, settings.jobs.max_log) == (tmp_path, 9000, 1 << 20)
    assert settings.cluster.instance_types == ("g4dn.xlarge",)


@pytest.mark.parametrize("name", ["MHS_DISPACHER__X", "MHS_HOMME", "mhs_engin", "MHS_"])
def test_a_misspelt_top_level_name_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    assert _faults() == {name: "no such setting; see `mhs doctor --settings` for all of them"}


def test_a_misspelt_name_in_a_section_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MHS_API__PROT", "1")
    assert list(_faults()) == ["MHS_API__PROT"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MHS_API__PORT", "70000"), ("MHS_ENGINE", "rkt"), ("MHS_JOBS__BACKOFF", "90"), ("MHS_API__MAX_BODY", "much"),
        ("MHS_HOST", "https://app.example.com"), ("MHS_HOST", "a b"), ("MHS_LOG_LEVEL", "LOUD"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_without_being_shown(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    faults = _faults()
    assert list(faults) == [name]
    assert value not in faults[name]


def test_the_database_url_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MHS_DATABASE_URL", "postgresql://u:s3cret@db/mhs")
    settings = load_settings()
    assert settings.sql_url == "postgresql://u:s3cret@db/mhs"
    assert "s3cret" not in repr(settings)


def test_the_clients_variables_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MHS_URL", "http://x")
    monkeypatch.setenv("MHS_CLIENT_SECRET", "s3cret")
    load_settings()
    found = client_environment()
    assert found.url == "http://x"
    assert "s3cret" not in repr(found)


def test_dockers_own_variable_is_taken_where_ours_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/d.sock")
    assert load_settings().docker_host == "unix:///run/d.sock"
    monkeypatch.setenv("MHS_DOCKER_HOST", "unix:///run/e.sock")
    assert load_settings().docker_host == "unix:///run/e.sock"


def test_a_misspelt_instance_type_is_told_with_what_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MHS_CLUSTER__INSTANCE_TYPES", '["g5.2xlrge"]')
    assert "did you mean g5.2xlarge?" in _faults()["MHS_CLUSTER__INSTANCE_TYPES__0"]


def test_warm_nodes_are_a_json_array_with_days_hours_and_a_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = (
        '{"instance_type":"g5.2xlarge","nodes":1,"days":"mon-fri","from":"07:00","to":"19:00","zone":"Europe/Zurich"}'
    )
    monkeypatch.setenv("MHS_CLUSTER__WARM", f"[{rule}]")
    (warm,) = load_settings().cluster.warm
    assert (warm.instance_type, warm.nodes, warm.weekdays, warm.zone) == (
        "g5.2xlarge", 1, (0, 1, 2, 3, 4), "Europe/Zurich",
    )  # fmt: skip
    assert (warm.begin.hour, warm.end.hour) == (7, 19)


@pytest.mark.parametrize(
    ("rule", "where", "words"),
    [
        ('{"instance_type":"p5.48xlarge"}', "INSTANCE_TYPE", "g5.2xlarge"),
        ('{"instance_type":"g5.2xlarge","days":"mon-fry"}', "DAYS", "mon-fri"),
        ('{"instance_type":"g5.2xlarge","zone":"Zurich"}', "ZONE", "Europe/Zurich"),
        ('{"instance_type":"g5.2xlarge","from":"7 Uhr"}', "FROM", "time"),
        ('{"instance_type":"g5.2xlarge","nodes":0}', "NODES", "1"),
        ('{"instance_type":"g5.2xlarge","day":"mon"}', "DAY", "not permitted"),
    ],
)
def test_a_bad_rule_for_warm_nodes_is_named(monkeypatch: pytest.MonkeyPatch, rule: str, where: str, words: str) -> None:
    monkeypatch.setenv("MHS_CLUSTER__WARM", f"[{rule}]")
    ((path, message),) = _faults().items()
    assert path == f"MHS_CLUSTER__WARM__0__{where}"
    assert words in message


def test_variables_on_top_hold_for_processes_started_meanwhile_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MHS_ENGINE", "docker")
    with settings_with({"MHS_ENGINE": "podman", "MHS_CLUSTER__PREPULL": "0"}) as settings:
        assert (settings.engine, settings.cluster.prepull) == ("podman", 0)
        assert os.environ["MHS_CLUSTER__PREPULL"] == "0"
    assert (os.environ["MHS_ENGINE"], os.environ.get("MHS_CLUSTER__PREPULL")) == ("docker", None)


def test_a_node_is_told_its_head_s_settings_but_no_secret_and_its_own_environment_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MHS_HOME", str(tmp_path / "head"))
    monkeypatch.setenv("MHS_DATABASE_URL", "postgresql://mhs:s3cret@db/mhs")
    monkeypatch.setenv("MHS_JOBS__STOP_GRACE", "PT3S")
    monkeypatch.setenv("MHS_JOBS__SCRATCH", "1GiB")
    monkeypatch.setenv("MHS_BLOBS__KIND", "s3")
    monkeypatch.setenv("MHS_TECHCYTE__HOST", "app.techcyte.com")
    told = json.loads(json.dumps(for_nodes(load_settings())))
    assert "s3cret" not in json.dumps(told)
    assert "techcyte" not in told
    for name in ("DATABASE_URL", "JOBS__STOP_GRACE", "BLOBS__KIND", "TECHCYTE__HOST"):
        monkeypatch.delenv(f"MHS_{name}")
    monkeypatch.setenv("MHS_HOME", str(tmp_path / "node"))
    monkeypatch.setenv("MHS_JOBS__SCRATCH", "2GiB")
    monkeypatch.setenv("MHS_ENGINE", "podman")
    node = as_node(load_settings(), told)
    assert (node.home, node.engine, node.blobs.kind) == (tmp_path / "node", "podman", "s3")
    assert (node.jobs.stop_grace, node.jobs.scratch) == (timedelta(seconds=3), 2 << 30)
    assert node.database_url is None
    assert node.jobs.max_time_limit == timedelta(minutes=90)
