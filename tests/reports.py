"""The check of a run's report: whole, self-contained and accessible."""

import html.parser
import json
import pathlib
import re

from experiments.shared import html_report

VOID = {"meta", "img", "wbr", "br"}


class Page(html.parser.HTMLParser):
    """Tags, text and cells of a page. Raises AssertionError if tags are not nested."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text, self.cells, self._open = [], "", [], []
        self.feed(text)
        assert self._open == [], self._open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.text += data
        if "td" in self._open:
            self.cells.append(data)

    def of(self, tag):
        """Attributes of all tags of a name."""
        return [attributes for name, attributes in self.tags if name == tag]


def check(out: pathlib.Path, figures=()) -> Page:
    """Check out/report.html against the files beside it.

    Args:
      out: Folder of a run.
      figures: Names of figures that it must hold, in their order.

    Returns:
      The page.
    """
    page = Page((out / "report.html").read_text())
    loaded = [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    assert loaded == []
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in ("src", "href"):
                assert value.startswith("data:"), value[:80]
    assert not re.search(r"url\(|@import", html_report.STYLE)
    for tag in ("header", "main", "footer", "h1", "title"):
        assert len(page.of(tag)) == 1, tag
    images = page.of("img")
    assert all(image["alt"] for image in images)
    for name in figures:
        png = (out / name).read_bytes()
        assert html_report.figure(png, "").split('src="')[1].split('"')[0] in {
            image["src"] for image in images
        }, name
    metrics = json.loads((out / "metrics.json").read_text())
    # A cell may hold a list, or names with their numbers.
    texts = {part.strip() for cell in page.cells for part in re.split("[][,:;]", cell)}
    assert set(_shown(metrics)) <= texts, set(_shown(metrics)) - texts
    if (out / "config.json").exists():
        for name in json.loads((out / "config.json").read_text()):
            assert name in page.text
    return page


def _shown(values):
    """The text of every number."""
    if isinstance(values, dict):
        for value in html_report.joined(values).values():
            yield from _shown(value)
    elif isinstance(values, html_report.Pair):
        yield html_report.with_error(*values)
    elif isinstance(values, list):
        for value in values:
            yield from _shown(value)
    elif isinstance(values, (int, float)) and not isinstance(values, bool):
        yield html_report.number(values)
