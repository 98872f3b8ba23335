"""The readability of the package in numbers: docstrings, words, comments,
checks, imports.

    python -m tests.style_report [PACKAGE FOLDER]

Prints one row per measure. The folder of another package gives the same rows
for comparison.
"""

import ast
import io
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]


def python_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Source files of a package, without its tests and its own library of checks."""
    return sorted(
        path
        for path in folder.rglob("*.py")
        if "test" not in path.name and folder / "checks" not in path.parents
    )


def definitions(tree: ast.Module) -> Iterator[tuple[str, ast.AST, bool]]:
    """(name, node, public) of a module, its classes, functions and methods."""
    yield "", tree, True

    def walk(parent: ast.AST, public: bool) -> Iterator[tuple[str, ast.AST, bool]]:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                shown = public and not node.name.startswith("_")
                yield node.name, node, shown
                yield from walk(node, shown and isinstance(node, ast.ClassDef))

    yield from walk(tree, True)


def docstrings(tree: ast.Module) -> list[str]:
    """All docstrings of a module."""
    texts = (ast.get_docstring(node) for _, node, _ in definitions(tree))  # type: ignore[arg-type]
    return [text for text in texts if text]


CHECKING = re.compile(r"^_?(check|require|validate|refuse|ensure)(_|$)")
"""Names of functions that do nothing but check."""


def is_check(node: ast.stmt) -> bool:
    """True for a statement that only checks arguments.

    It is a raise, an `if` of raises alone, or a call of a check whose value is the
    argument itself or is not used.
    """
    if isinstance(node, ast.Raise | ast.Assert):
        return True
    if isinstance(node, ast.If):
        return all(map(is_check, node.body)) and all(map(is_check, node.orelse))
    if isinstance(node, ast.FunctionDef):
        return bool(CHECKING.match(node.name))
    if isinstance(node, ast.Expr | ast.Assign | ast.AnnAssign):
        return any(
            isinstance(call, ast.Call) and calls_a_check(call)
            for call in ast.walk(node)
        )
    return False


def calls_a_check(call: ast.Call) -> bool:
    """True for checks.f(...), check_f(...) and module.check(...).

    Two functions of `checks` inspect a value and raise nothing.
    """
    name = ast.unparse(call.func)
    if name in ("checks.is_traced", "checks.promoted"):
        return False
    return name.startswith("checks.") or bool(CHECKING.match(name.split(".")[-1]))


def statement_lines(tree: ast.Module) -> tuple[int, int]:
    """(lines of statements that check, lines of all statements).

    Docstrings are left out. A decorator that checks counts with its lines.
    """
    checking: set[int] = set()
    every: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        whole = not hasattr(node, "body") or is_check(node)
        last = node.end_lineno if whole else node.lineno
        lines = set(range(node.lineno, (last or node.lineno) + 1))
        every |= lines
        if is_check(node):
            checking |= lines - docstring_lines(node)
        for decorator in getattr(node, "decorator_list", []):
            span = range(decorator.lineno, (decorator.end_lineno or 0) + 1)
            every |= set(span)
            if ast.unparse(decorator).startswith("checks."):
                checking |= set(span)
    return len(checking), len(every)


def docstring_lines(node: ast.AST) -> set[int]:
    """Lines of the docstring of a function, none for other statements."""
    if not isinstance(node, ast.FunctionDef) or not ast.get_docstring(node):
        return set()
    first = node.body[0]
    return set(range(first.lineno, (first.end_lineno or first.lineno) + 1))


def positional(node: ast.AST) -> int:
    """Positional parameters of a function, without self and cls."""
    if not isinstance(node, ast.FunctionDef):
        return 0
    names = [argument.arg for argument in [*node.args.posonlyargs, *node.args.args]]
    return len([name for name in names if name not in ("self", "cls")])


def comment_lines(text: str) -> int:
    """Lines that hold a comment of words, not a rule and not a directive to a tool."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    kept = [
        t for t in comments if not re.match(r"# ?(-{3,}|noqa|type:|pyright)", t.string)
    ]
    return len({token.start[0] for token in kept})


def share(part: float, whole: float) -> float:
    """A percentage with one decimal."""
    return round(100 * part / whole, 1)


def report(folder: pathlib.Path) -> dict[str, float | int | str]:
    """The measures of one package."""
    texts = [path.read_text() for path in python_files(folder)]
    trees = [ast.parse(text) for text in texts]
    docs = [doc for tree in trees for doc in docstrings(tree)]
    prose = "\n".join(docs).lower()
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    lengths = sorted(map(len, lines))
    checking, statements = map(sum, zip(*map(statement_lines, trees), strict=True))
    nodes = [node for tree in trees for node in ast.walk(tree)]
    raises = sum(isinstance(node, ast.Raise) for node in nodes)
    public = [
        (positional(node), name)
        for tree in trees
        for name, node, shown in definitions(tree)
        if shown
    ]
    most, function = max(public)
    law_count, distributions = (
        len(re.findall(rf"\b{word}s?\b", prose)) for word in ("law", "distribution")
    )
    with_arguments = sum("Args:" in doc or "**Arguments" in doc for doc in docs)
    with_examples = sum("Example" in doc or ">>>" in doc for doc in docs)
    return {
        "docstrings": len(docs),
        "with an argument section, %": share(with_arguments, len(docs)),
        "with an example, %": share(with_examples, len(docs)),
        "law : distribution": f"{law_count} : {distributions}",
        "semicolons per 1000 words of docstring": round(
            1000 * prose.count(";") / len(prose.split()), 1
        ),
        "comment lines, %": share(sum(map(comment_lines, texts)), len(lines)),
        "statement lines that check, %": share(checking, statements),
        "raise per 1000 lines": round(1000 * raises / len(lines), 1),
        "line length, 90th percentile": lengths[int(0.9 * len(lengths))],
        "most positional parameters": f"{most} ({function})",
    }


def arrows(folder: pathlib.Path) -> tuple[int, int]:
    """Entries of a folder of modules and packages, and imports from one to another.

    Several imports between the same two entries are one arrow.
    """
    pairs = set()
    for path in folder.rglob("*.py"):
        entry = path.relative_to(folder).parts[0].removesuffix(".py")
        package = [folder.name, *path.relative_to(folder).parts[:-1]]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                base = [*base, *(node.module or "").split(".")]
                names = [[*base, alias.name] for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name.split(".") for alias in node.names]
            else:
                continue
            for name in (list(filter(None, name)) for name in names):
                if name[0] == folder.name and len(name) > 1 and name[1] != entry:
                    pairs.add((entry, name[1]))
    entries = [
        path
        for path in folder.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    return len(entries), len(pairs)


def main() -> None:
    """Print the report of a folder, by default this package's and its experiments."""
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "diffjax"
    rows = report(folder)
    if len(sys.argv) == 1:
        entries, pairs = arrows(ROOT / "experiments")
        rows["entries of experiments, imports between them"] = f"{entries}, {pairs}"
    for name, value in rows.items():
        print(f"{name:46s} {value}")


if __name__ == "__main__":
    main()
