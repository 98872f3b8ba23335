"""Pages of the site that show the sources, to which `[source]` links lead."""

import ast
import functools
import html
import pathlib
import re

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = ("diffjax", "experiments", "tests")

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{path} - diffjax</title>
<link rel="stylesheet" href="{up}assets/source.css">
</head>
<body>
<header><a href="{up}index.html">diffjax</a> <code>{path}</code></header>
<main>{code}</main>
</body>
</html>
"""


def files() -> list[pathlib.Path]:
    """The Python files that have a page, relative to the root."""
    return sorted(
        path.relative_to(ROOT)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
    )


def uri(path: pathlib.PurePath | str) -> str:
    """Address of the page of a source, from the root of the site.

    Args:
      path: The source, relative to the root of the repository.

    Returns:
      The address.
    """
    return f"source/{pathlib.PurePath(path).with_suffix('').as_posix()}.html"


def page(path: pathlib.Path) -> str:
    """The page of a source. Line n has the anchor `L-n`.

    Args:
      path: The source, relative to the root of the repository.

    Returns:
      HTML.
    """
    text = (ROOT / path).read_text(encoding="utf-8")
    formatter = HtmlFormatter(
        linenos="inline", lineanchors="L", anchorlinenos=True, cssclass="highlight"
    )
    return PAGE.format(
        path=html.escape(path.as_posix()),
        up="../" * len(path.parts),
        code=highlight(text, PythonLexer(), formatter),
    )


def styles() -> str:
    """The style sheet of these pages, light and dark."""
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    return (
        "body{margin:0;font:14px/1.5 system-ui,sans-serif;background:#fff;color:#222}"
        "header{padding:.6rem 1rem;border-bottom:1px solid #8884;position:sticky;top:0;"
        "background:inherit}main{overflow-x:auto;padding:0 1rem}pre{font-size:13px}"
        "a{color:#3949ab}.linenos,.linenos a{color:#767676;text-decoration:none;"
        "user-select:none}:target{background:#ffe08a66;display:inline-block}\n"
        f"{light}\n@media (prefers-color-scheme: dark){{"
        "body{background:#0d1117;color:#e6edf3}a{color:#9fa8da}.linenos,.linenos a"
        f"{{color:#8b949e}}\n{dark}\n}}"
    )


def line_of(path: pathlib.PurePath | str, name: str) -> int:
    """Line of a function, a class or a constant of a module.

    Args:
      path: The source, relative to the root of the repository.
      name: The name, with dots for methods.

    Returns:
      The line, from 1.

    Raises:
      ValueError: If the source has no such name.
    """
    node: ast.AST = _parsed((ROOT / path).read_text(encoding="utf-8"))
    for part in name.split("."):
        entry = next((n for n in ast.iter_child_nodes(node) if _names(n, part)), None)
        if entry is None:
            raise ValueError(f"{path} must define {name}, which is not there")
        node = entry
    return node.lineno  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=128)
def _parsed(text):
    return ast.parse(text)


def _names(node, name):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name == name
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
    return any(isinstance(t, ast.Name) and t.id == name for t in targets)


def link(reference: str) -> str | None:
    """Address of `PATH.py`, `PATH.py::NAME` from the root of the site.

    Args:
      reference: A path from the root of the repository, maybe with a name.

    Returns:
      The address. None if it is not of that form.

    Raises:
      ValueError: If it has the form, and there is no such file or name.
    """
    match = re.fullmatch(
        rf"((?:{'|'.join(FOLDERS)})/[\w/]+\.py)(?:::([\w.]+))?", reference
    )
    if not match:
        return None
    path, name = match.groups()
    if "/NAME/" in path:  # it stands for any experiment
        return None
    if not (ROOT / path).is_file():
        raise ValueError(f"there is no file {path}")
    return uri(path) + (f"#L-{line_of(path, name)}" if name else "")
