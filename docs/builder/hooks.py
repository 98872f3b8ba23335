"""Hooks of mkdocs: pages run, generated pages, links to sources and to the API."""

import functools
import html
import logging
import os
import pathlib
import posixpath
import re
import sys
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ROOT / "docs" / "pages"
sys.path.insert(0, str(ROOT))

from docs.builder import (
    api,
    blocks,
    gallery,
    mathematics,
    references,
    running,
    sources,
    standings,
)

log = logging.getLogger("mkdocs.hooks.diffjax")


def on_config(config: Any) -> Any:
    """Put the pages of the API where the navigation says `API`."""
    listed = [{topic.title: f"api/{topic.slug}.md"} for topic in api.TOPICS]
    config.nav = [
        {"API": [*entry["API"], *listed]} if "API" in entry else entry
        for entry in config.nav
    ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Run all pages, and add what is generated to the site."""
    try:
        texts = {
            file.src_uri: blocks.read(pathlib.Path(file.abs_src_path))
            for file in files.documentation_pages()
            if file.abs_src_path
        }
    except ValueError as error:
        raise PluginError(str(error)) from error
    if not os.environ.get("DOCS_WITHOUT_CODE"):
        for fault in running.run_pages(texts):
            log.warning(fault)
    add = lambda uri, content: files.append(
        File.generated(config, uri, content=content)
    )
    for name, text in texts.items():
        for figure, content in running.figures(text).items():
            add(posixpath.join(posixpath.dirname(name), figure), content)
    add("gallery.md", gallery.page())
    add("project/changelog.md", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    for topic in api.TOPICS:
        add(f"api/{topic.slug}.md", api.page(topic))
    for path in sources.files():
        add(sources.uri(path), sources.page(path))
    add("assets/source.css", sources.styles())
    add("assets/standings.js", standings.script(address_of))
    results = ROOT / "experiments" / "results"
    for path in sorted(results.rglob("*.*")):
        add(f"results/{path.relative_to(results).as_posix()}", path.read_bytes())
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Fold the code of figures, and lead links out of the pages into the site."""
    if page.file.src_uri.startswith("api/"):
        return markdown
    return linked(folded(markdown), page.file.src_uri)


def folded(markdown: str) -> str:
    """The Markdown of a page with the code of figures folded.

    Args:
      markdown: The page.

    Returns:
      The page, its info strings reduced to `python`.
    """

    def replace(match):
        code = f"```python\n{match[2]}```"
        if "figure" not in match[1].split():
            return code
        indented = "\n".join(f"    {line}".rstrip() for line in code.split("\n"))
        return f'??? quote "Code of the figure"\n\n{indented}\n'

    return re.sub(blocks.CODE, replace, markdown, flags=re.MULTILINE | re.DOTALL)


def linked(markdown: str, uri: str) -> str:
    """Replace links to files of the repository outside the pages.

    Args:
      markdown: The page.
      uri: Its path below the pages.

    Returns:
      The page. Sources lead to their pages, results to their copies.
    """
    folder = (PAGES / uri).parent

    def replace(match):
        target, anchor, rest = match[1], match[2] or "", match[3] or ""
        if re.match(r"\w+:", target):
            return match[0]
        path = (folder / target).resolve()
        if path.is_relative_to(PAGES) or not path.is_relative_to(ROOT):
            return match[0]
        relative = path.relative_to(ROOT).as_posix()
        if relative.startswith("experiments/results/"):
            address = relative.removeprefix("experiments/")
        elif path.suffix == ".py":
            address = sources.uri(relative)
        elif relative == "README.md":
            address = "index.md"
        else:
            return match[0]
        up = posixpath.relpath(address, posixpath.dirname(uri) or ".")
        return f"]({up}{anchor}{rest})"

    return re.sub(r"\]\(([^)#\s]+)(#[^)\s]*)?(\s[^)]*)?\)", replace, markdown)


@functools.cache
def _addresses():
    """Addresses of public names without `dj.`, and of solvers by their last names."""
    table = api.addresses()
    public = {name.removeprefix("dj."): address for name, address in table.items()}
    solvers = {
        name.removeprefix("solvers."): address
        for name, address in public.items()
        if name.startswith("solvers.")
    }
    return public, solvers


def address_of(code: str) -> str | None:
    """Address of what inline code names, from the root of the site.

    Args:
      code: `dj.sample`, `grids.karras(…)`, `unipc(3)` or `tests/test_x.py::name`.

    Returns:
      The address. None if it names nothing public.
    """
    if address := sources.link(code):
        return address
    public, solvers = _addresses()
    match = re.fullmatch(r"(?:dj\.|diffjax\.)?(\w+(?:\.\w+)*)(\(.*\))?", code)
    if not match:
        return None
    name, call = match.groups()
    if ("." in name or code.startswith(("dj.", "diffjax."))) and name in public:
        return public[name]
    return solvers.get(name) if call else None


def on_page_content(content: str, page: Any, **kwargs: Any) -> str:
    """Link inline code to the API and to sources, and set formulas."""
    uri = page.file.src_uri
    try:
        content = mathematics.rendered(content)
    except ValueError as error:
        log.warning(f"{uri}: {error}")
    if standings.MARK in content:
        content = content.replace(standings.MARK, standings.table())
    folder = posixpath.dirname(uri) or "."
    # On a page of the API a docstring names its neighbours without their module.
    own_page = uri.removesuffix(".md") + ".html#"
    neighbours = {
        address.rpartition(".")[2]: address
        for address in _addresses()[0].values()
        if address.startswith("api/") and address.startswith(own_page)
    }

    def replace(match):
        try:
            code = html.unescape(match[1])
            references.check(code)
            address = neighbours.get(code) or address_of(code)
        except ValueError as error:
            log.warning(f"{uri}: {error}")
            return match[0]
        if address is None:
            return match[0]
        return f'<a href="{posixpath.relpath(address, folder)}">{match[0]}</a>'

    # Not inside links, headings and blocks of code.
    parts = re.split(
        r"(<a\b.*?</a>|<h\d\b.*?</h\d>|<pre\b.*?</pre>)", content, flags=re.DOTALL
    )
    return "".join(
        part if i % 2 else re.sub(r"<code>([^<]+)</code>", replace, part)
        for i, part in enumerate(parts)
    )
