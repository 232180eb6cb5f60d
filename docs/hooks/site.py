"""What mkdocs calls while it builds the site: pages generated from the code, the order of the pages, the diagrams."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation, Section

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from docs.hooks import mermaid, notebooks, reference  # noqa: E402 (mkdocs loads this file by its path)

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ORDER = ("index", "tutorial", "how-to", "notebooks", "contract", "operations", "reference")
"""What is not named here comes behind, by name."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show diagrams as text where their script cannot be had: none is ever loaded from elsewhere."""
    if not mermaid.available(Path(config.docs_dir)):
        config.mdx_configs["pymdownx.superfences"]["custom_fences"] = []
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of the code and of notebooks."""
    for path, make in reference.PAGES.items():
        files.append(File.generated(config, path, content=make()))
    for file in [f for f in files if f.src_uri.endswith(".ipynb")]:
        page = notebooks.as_markdown(Path(file.abs_src_path or "").read_text())
        files.append(File.generated(config, file.src_uri.removesuffix(".ipynb") + ".md", content=page))
    return files


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    """Order the sections; in a section its overview comes first, then the pages by name."""
    nav.items.sort(key=_rank)
    return nav


def _rank(item: Any) -> tuple[int, str]:
    name = _name(item)
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def _name(item: Any) -> str:
    """Return the folder of a section, or the file of a page, without its ending."""
    if isinstance(item, Section):
        return _name(item.children[0]).rpartition("/")[0] or _folder(item.children[0])
    uri: str = item.file.src_uri
    return uri.removesuffix(".md")


def _folder(item: Any) -> str:
    return str(item.file.src_uri).partition("/")[0]


_COMMANDS = re.compile(r"^ *```(sh|bash|shell|console)\b", re.MULTILINE)
_NOT_RUN = re.compile(r"^ *<!-- not run: (.+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Say of a page with commands how far a test goes with them."""
    if page.file.generated_by is not None or not _COMMANDS.search(markdown):
        return markdown
    note = "A test runs what is on this page, from top to bottom, on a real platform"
    if reasons := list(dict.fromkeys(_NOT_RUN.findall(markdown))):
        note += f"; left out is what {', '.join(reasons)}"
    return f"{markdown}\n\n---\n\n*{note}.*\n"


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Load the diagrams' script only on pages that have some."""
    if 'class="mermaid"' not in output:
        return output
    up = "../" * page.url.count("/")
    return output.replace("<head>", f'<head><script src="{up}{mermaid.PATH}"></script>', 1)
