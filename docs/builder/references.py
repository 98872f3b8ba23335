"""Names and paths of the project in inline code, and whether they exist."""

import functools
import importlib
import importlib.util
import inspect
import re
import types

import diffjax
from docs.builder import api, sources

FOLDERS = ("diffjax", "docs", "experiments", "tests")
MADE = "docs/site"
"""Folder that a command of the repository makes."""

NAME = re.compile(r"(?<![\w./)\]-])(dj\.|diffjax\.)?([a-zA-Z_]\w*(?:\.[a-zA-Z_]\w*)*)")
PATH = re.compile(rf"((?:{'|'.join(FOLDERS)})/[^\s:,;()]*)(::\S*)?")
PLACEHOLDER = re.compile(r"[…<{]|\b[A-Z_]{3,}\b(?=/|$)")
FILE = re.compile(
    r"\.(?:csv|html|jsonl?|md|npz|png|py|safetensors|svg|toml|txt|ya?ml)$"
)


def check(code: str) -> None:
    """Check what inline code names.

    Names from `dj.` or `diffjax.` on, and attributes of a public module such as
    `grids.karras`, must be in the library. Paths below the folders of the repository
    must be there.

    Args:
      code: Code of one line.

    Raises:
      ValueError: If one of them does not exist.
    """
    for word in code.split():
        if match := PATH.match(word):
            _check_path(match[1], match[2])
    for prefix, name in NAME.findall(code):
        first, _, rest = name.partition(".")
        of_a_module = rest[:1].islower() and first in _modules()
        if (prefix or of_a_module) and not FILE.search(name) and not _is_there(name):
            raise ValueError(f"there is no {prefix}{name} (in `{code}`)")


def _check_path(path, name):
    if PLACEHOLDER.search(path) or path.startswith(MADE):
        return
    if not any(sources.ROOT.glob(path)):
        raise ValueError(f"there is no file {path}")
    if name is not None:  # of a test, maybe a method or with parameters
        sources.line_of(path, name.partition("[")[0].strip(":").replace("::", "."))


@functools.cache
def _modules():
    names = (name for topic in api.TOPICS for name in topic.packages)
    return {name.partition(".")[2] for name in names if "." in name}


@functools.cache
def _is_there(name):
    """Whether a dotted name can be reached from `diffjax`."""
    value = diffjax
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            if inspect.isclass(value):  # a field without a default
                return any(part in inspect.get_annotations(c) for c in value.__mro__)
            if not isinstance(value, types.ModuleType):
                return False
            full = f"{value.__name__}.{part}"
            if not hasattr(value, "__path__") or not importlib.util.find_spec(full):
                return False
            value = importlib.import_module(full)
    return True
