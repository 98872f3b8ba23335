"""The modules of diffjax, what they import, and the layers that follow from it.

The sources are parsed, never imported, so that an import in a function or behind a
condition counts too.
"""

import ast
import graphlib
import pathlib
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[2]


def sources() -> dict[str, str]:
    """The text of each source of diffjax, by its path from the root."""
    paths = sorted((ROOT / "diffjax").rglob("*.py"))
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in paths
    }


def module_name(path: str) -> str:
    """The dotted name of a source.

    Args:
      path: Such as diffjax/networks/unet.py, or diffjax/networks/__init__.py.

    Returns:
      diffjax.networks.unet, or diffjax.networks.
    """
    parts = pathlib.PurePosixPath(path).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def top_level(module: str) -> str:
    """The module of diffjax that a dotted name lies in, "" for diffjax itself."""
    return module.split(".")[1] if "." in module else ""


def imported(path: str, source: str) -> Iterator[tuple[int, str, str | None]]:
    """Every import of a source.

    Args:
      path: Its path from the root, against which relative names are resolved.
      source: Its text.

    Yields:
      Line, absolute module, and name or None. A module outside the package is "..".
      `importlib.import_module` and `__import__` count by their argument, "?" where it
      is no constant.
    """
    module = module_name(path)
    package = (
        module.split(".") if path.endswith("__init__.py") else module.split(".")[:-1]
    )

    def resolved(level, name):
        if level > len(package):
            return ".."
        return (
            ".".join(package[: len(package) - level + 1] + ([name] if name else []))
            if level
            else name
        )

    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None
        elif isinstance(node, ast.ImportFrom):
            base = resolved(node.level, node.module)
            for alias in node.names:
                yield node.lineno, base, alias.name
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("import_module", "__import__")
        ):
            name = (
                node.args[0].value
                if node.args and isinstance(node.args[0], ast.Constant)
                else "?"
            )
            level = len(name) - len(name.lstrip("."))
            yield node.lineno, resolved(level, name.lstrip(".")), None


def target_module(base: str, name: str | None, modules: set[str]) -> str:
    """The module that `from base import name` needs.

    Args:
      base: Absolute module.
      name: The imported name. None for `import base`.
      modules: All modules.

    Returns:
      base.name where that is a module, else base.
    """
    return base if name is None or f"{base}.{name}" not in modules else f"{base}.{name}"


def imports(texts: dict[str, str] | None = None) -> dict[str, set[str]]:
    """Imports among the modules of diffjax.

    Args:
      texts: Sources by path. Default: those of diffjax.

    Returns:
      Names of the imported modules by the name of the module, the private ones too.
    """
    texts = sources() if texts is None else texts
    modules = {module_name(path) for path in texts}
    graph: dict[str, set[str]] = {}
    for path, text in texts.items():
        module = top_level(module_name(path))
        if not module:  # diffjax itself
            continue
        others = graph.setdefault(module, set())
        for _, base, name in imported(path, text):
            other = target_module(base, name, modules)
            if other.startswith("diffjax.") and top_level(other) != module:
                others.add(top_level(other))
    return graph


def layers(graph: dict[str, set[str]]) -> dict[str, int]:
    """The layer of each module.

    Args:
      graph: What each module imports.

    Returns:
      0 where a module imports no other, else one above the highest that it imports.
    """
    layer: dict[str, int] = {}
    for module in graphlib.TopologicalSorter(graph).static_order():
        below = (layer[other] for other in graph.get(module, ()))
        layer[module] = 1 + max(below, default=-1)
    return layer
