"""How the package reads, in numbers: docstrings, words, comments, checks, line lengths, parameters, imports.

    python -m tests.style_report [PACKAGE FOLDER]

Prints one row per measure. A folder of another package gives the same rows for comparison.
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
    """Source files of a package, without its tests and without the house of checks."""
    return sorted(
        path
        for path in folder.rglob("*.py")
        if "test" not in path.name and path.name != "checks.py"
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
    found = (ast.get_docstring(node) for _, node, _ in definitions(tree))  # type: ignore[arg-type]
    return [text for text in found if text]


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
    """True for checks.f(...), check_f(...) and module.check(...)."""
    name = ast.unparse(call.func)
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


def report(folder: pathlib.Path) -> dict[str, float | int | str]:
    """The measures of one package."""
    texts = [path.read_text() for path in python_files(folder)]
    trees = [ast.parse(text) for text in texts]
    docs = [doc for tree in trees for doc in docstrings(tree)]
    words = sum(len(doc.split()) for doc in docs)
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    checking, statements = map(sum, zip(*map(statement_lines, trees), strict=True))
    public = [
        (name, node)
        for tree in trees
        for name, node, shown in definitions(tree)
        if shown
    ]
    most = max(public, key=lambda pair: positional(pair[1]))
    prose = "\n".join(docs).lower()
    laws, distributions = (
        len(re.findall(rf"\b{word}s?\b", prose)) for word in ("law", "distribution")
    )
    lengths = sorted(map(len, lines))
    raises = sum(
        isinstance(node, ast.Raise) for tree in trees for node in ast.walk(tree)
    )
    return {
        "docstrings": len(docs),
        "docstrings with an argument section": sum(
            "Args:" in doc or "**Arguments" in doc for doc in docs
        ),
        "docstrings with an example": sum(
            "Example" in doc or ">>>" in doc for doc in docs
        ),
        "law : distribution": f"{laws} : {distributions}",
        "semicolons per 1000 words of docstring": round(
            1000 * sum(doc.count(";") for doc in docs) / words, 1
        ),
        "comment lines, %": round(100 * sum(map(comment_lines, texts)) / len(lines), 1),
        "statement lines that check, %": round(100 * checking / statements, 1),
        "raise per 1000 lines": round(1000 * raises / len(lines), 1),
        "line length, 90th percentile": lengths[int(0.9 * len(lengths))],
        "most positional parameters": f"{positional(most[1])} ({most[0]})",
    }


def main() -> None:
    """Print the report of a folder, by default this package's."""
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "diffjax"
    for name, value in report(folder).items():
        print(f"{name:42s} {value}")


if __name__ == "__main__":
    main()
