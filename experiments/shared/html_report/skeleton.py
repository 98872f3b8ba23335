"""The skeleton of every page, its style, and the parts that hold no numbers."""

import base64
import html
import re
from collections.abc import Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --faint: #5b6570; --line: #d5dae0;
  --back: #fff; --panel: #f4f6f8; --link: #0b5cad; --good: #1a7f37; --bad: #c01c28; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ec; --faint: #a0abb6;
  --line: #39424c; --back: #14181c; --panel: #1e242a; --link: #7db7f5;
  --good: #5fce7c; --bad: #ff7b7b; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text);
  background: var(--back); max-width: 60rem; margin: 0 auto;
  padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .2rem 0 .6rem; text-wrap: balance; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .4rem; overflow-wrap: anywhere; }
p, ul { margin: .5rem 0; max-width: 44rem; }
a { color: var(--link); }
.faint { color: var(--faint); }
code, pre { font-family: ui-monospace, monospace; font-size: .92em;
  overflow-wrap: anywhere; }
pre { overflow-x: auto; background: var(--panel); padding: .6rem .8rem; }
figure { margin: 1rem 0 1.6rem; }
img { display: block; max-width: 100%; height: auto; background: #fff;
  border: 1px solid var(--line); border-radius: 4px; }
figcaption { margin-top: .4rem; color: var(--faint); font-size: .95rem; }
.scroll { overflow-x: auto; margin: .5rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .93rem; }
caption { text-align: left; color: var(--faint); padding: .2rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
thead th { color: var(--faint); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; }
td.n { text-align: right; white-space: nowrap; }
td.text { overflow-wrap: anywhere; }
thead th.n { text-align: right; }
td .scroll { margin: 0; }
summary { cursor: pointer; padding: .15rem 0; }
details > div { overflow-wrap: anywhere; white-space: normal; }
.warning { background: var(--panel); border-left: 4px solid var(--bad);
  padding: .5rem .8rem; }
.pass { color: var(--good); } .fail { color: var(--bad); font-weight: bold; }
.note { color: var(--faint); }
.pair { white-space: nowrap; }
@media (max-width: 40rem) { th, td { padding-right: .7rem; }
  .wide { overflow-x: auto; } .wide img { max-width: none; width: 44rem; } }
@media print { body { max-width: none; } .scroll { overflow: visible; } }
"""

# Nothing is loaded from elsewhere, whatever the texts of a run hold.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, lead: Sequence[str], parts: Sequence[str], foot: str = "") -> str:
    """A whole page.

    Args:
      title: Text of the window and first words of the page.
      lead: HTML above and below the heading: what the page is, and of what.
      parts: HTML of its sections.
      foot: HTML of the last lines.

    Returns:
      The page.
    """
    above, below = lead
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f'<body>\n<header>\n<p class="faint">{above}</p>\n'
        f"<h1>{rich(title)}</h1>\n{below}\n</header>\n<main>\n{body}\n</main>\n"
        f'<footer class="faint">\n{foot}\n</footer>\n</body>\n</html>\n'
    )


def section(title: str, body: str, *, folded: bool = False) -> str:
    """A part of a page under a heading of its own. Empty if the body is.

    Args:
      title: The heading.
      body: HTML.
      folded: Whether the reader has to open it.

    Returns:
      HTML.
    """
    if not body:
        return ""
    name = re.sub(r"\W+", "-", title).lower()
    if folded:
        body = fold("show", body)
    return (
        f'<section aria-labelledby="{name}">\n<h2 id="{name}">{html.escape(title)}'
        f"</h2>\n{body}\n</section>"
    )


def fold(summary: str, body: str) -> str:
    """Content that is hidden until the reader opens it.

    Args:
      summary: The text that is always visible.
      body: HTML of the content.

    Returns:
      HTML.
    """
    shown = html.escape(summary)
    return f"<details><summary>{shown}</summary><div>{body}</div></details>"


def rich(text: str) -> str:
    """Escaped text, in which words in backquotes are set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def label(text: Any) -> str:
    """An escaped name, which may break after its underscores."""
    return html.escape(str(text)).replace("_", "_<wbr>")


def figure(png: bytes, alt: str, caption: str = "") -> str:
    """An embedded PNG.

    Args:
      png: The file's bytes.
      alt: What it shows, for those who do not see it.
      caption: HTML below it.

    Returns:
      HTML.
    """
    width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    # On a phone a wide figure scrolls sideways, as its text would be too small.
    wide = width > 1.4 * height
    box = 'class="wide" role="region" tabindex="0" aria-label="figure"' if wide else ""
    return (
        f'<figure><div {box}><img alt="{html.escape(alt)}" width="{width}" '
        f'height="{height}" src="{_data("image/png", png)}"></div>{below}</figure>'
    )


def download(name: str, text: str) -> str:
    """A link that saves a JSON file, whose content is in the link.

    Args:
      name: Name of the file.
      text: Its content.

    Returns:
      HTML.
    """
    address = _data("application/json", text.encode())
    return f'<a download="{html.escape(name)}" href="{address}">{html.escape(name)}</a>'


def _data(kind, content):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
