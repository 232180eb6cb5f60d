"""The site builds strictly, shows what the code says, and asks nobody else for anything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from mkdocs.config import load_config
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Section, get_navigation

from api.app import build_app
from api.errors import KINDS
from docs.hooks import http_page, site, tables
from docs.hooks.states_page import page as states_page
from mhs_ray.cli.doctor import setting_rows
from mhs_ray.cli.main import app
from mhs_ray.client import Client
from mhs_ray.domain.failures import FailureCode
from mhs_ray.domain.settings import Settings
from mhs_ray.domain.states import JobEvent, JobState
from tests.docs_pages import DOCS, ROOT

LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src", "video": "src"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)], cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


class _Loads(HTMLParser):
    """Collects what a page makes a browser fetch by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") in {"canonical", "next", "prev"}:
            return
        if (name := LOADED.get(tag)) and given.get(name):
            self.found.append(str(given[name]))


def test_the_pages_load_nothing_from_elsewhere(built: Path) -> None:
    pages = list(built.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        reader = _Loads()
        reader.feed(page.read_text())
        assert [u for u in reader.found if re.match(r"(https?:)?//", u)] == [], page
        for url in reader.found:
            target = (page.parent / url.partition("?")[0]).resolve()
            assert target.is_file() or page.name == "404.html" or url.startswith("data:"), f"{page}: {url}"
    for sheet in built.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", sheet.read_text()), sheet


def test_diagrams_are_drawn_by_a_script_of_the_site_or_shown_as_text(built: Path) -> None:
    states = (built / "reference" / "states.html").read_text()
    assert "stateDiagram-v2" in states
    if 'class="mermaid"' in states:
        assert '<script src="../assets/vendor/mermaid.min.js">' in states
        assert (built / "assets" / "vendor" / "mermaid.min.js").stat().st_size > 1_000_000
    assert "mermaid.min.js" not in (built / "tutorial.html").read_text()


def test_the_search_knows_every_page(built: Path) -> None:
    index = json.loads((built / "search" / "search_index.json").read_text())
    places = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert {"tutorial.html", "contract.html", "reference/settings.html", "reference/http-api.html"} <= places


def test_every_command_has_its_place(built: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (built / "reference" / "cli.html").read_text())
    root = typer.main.get_command(app)
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        for words in [f"mhs {name} {sub}" for sub in getattr(command, "commands", ())] or [f"mhs {name}"]:
            assert words in text


def test_every_method_of_the_client_has_its_place(built: Path) -> None:
    page = (built / "reference" / "client.html").read_text()
    methods = [n for n in vars(Client) if not n.startswith("_") and callable(getattr(Client, n)) and n != "close"]
    assert [n for n in methods if not re.search(rf'id="mhs_ray\.client\.\w+\.{n}"|AsyncClient\.{n}"', page)] == []


def test_every_setting_code_state_and_problem_has_its_row() -> None:
    settings, problems, failures, states = tables.settings(), tables.problems(), tables.failures(), states_page()
    assert [r["variable"] for r in setting_rows(Settings()) if f"`{r['variable']}`" not in settings] == []
    assert all(f"`/problems/{kind.slug}`" in problems for kind in KINDS)
    assert all(f"| `{code}` |" in failures for code in FailureCode)
    assert set(tables.MEANINGS) <= {str(code) for code in FailureCode}
    assert all(f"`{each}`" in states for each in (*JobState, *JobEvent))


def test_the_settings_defaults_can_be_set_as_they_are_shown() -> None:
    shown = dict(re.findall(r"^\| `(MHS_\w+)` \| [^|]+ \| `([^`]+)`", tables.settings(), re.MULTILINE))
    assert shown["MHS_JOBS__MAX_TIME_LIMIT"] == "PT1H30M"
    assert shown["MHS_API__MAX_BODY"] == "8MiB"
    for name, text in shown.items():
        if name == "MHS_HOME":
            continue
        parts = name.removeprefix("MHS_").lower().split("__")
        data = {parts[-1]: json.loads(text) if text[0] in "[{" else text}
        for part in reversed(parts[:-1]):
            data = {part: data}
        made = Settings.model_validate(data)
        value, default = made, Settings()
        for part in parts:
            value, default = getattr(value, part), getattr(default, part)
        assert value == default, name


def test_every_route_and_schema_is_on_the_page_and_no_link_leads_nowhere() -> None:
    document = build_app().openapi()
    page = http_page.render(document)
    for path, method, operation in http_page.operations(document):
        assert f"### {method.upper()} {path}".replace("{", "&#123;").replace("}", "&#125;") in page
        for parameter in operation.get("parameters", ()):
            assert f"| `{parameter['name']}` | {parameter['in']} |" in page
    anchors = set(re.findall(r"\{ #(schema-[\w-]+) \}", page))
    assert set(re.findall(r"\(#(schema-[\w-]+)\)", page)) <= anchors
    assert len(anchors) > 30


def test_a_new_page_is_in_the_navigation_without_an_edit() -> None:
    config = load_config(str(ROOT / "mkdocs.yml"))
    names = ["reference/cli.md", "zebra/new.md", "index.md", "operations/aws.md", "how-to/a.md", "tutorial.md"]
    config.plugins._current_plugin = None  # mkdocs sets it before it calls a hook
    files = Files([File.generated(config, name, content="# x") for name in names])
    nav = site.on_nav(get_navigation(files, config), config, files)
    told = [i.title if isinstance(i, Section) else i.file.src_uri for i in nav.items]
    assert told == ["index.md", "tutorial.md", "How to", "Operations", "Reference", "Zebra"]


def test_notebooks_are_kept_without_outputs() -> None:
    found = sorted(DOCS.rglob("*.ipynb"))
    assert found
    for path in found:
        for cell in json.loads(path.read_text())["cells"]:
            assert cell.get("outputs", []) == [], path
            assert cell.get("execution_count") is None, path
