"""Every public name has a docstring, the README's Python runs, and the text speaks of the product alone."""

import ast
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def is_public(name):
    return not name.startswith("_")


def methods(node):
    return [entry for entry in node.body if isinstance(entry, ast.FunctionDef) and is_public(entry.name)]


def undocumented(sources):
    """'module:line name' of each public name without a docstring in `sources`, {path: text}.

    Public are modules, and in them functions, classes and their methods. A method that takes the place of a documented
    one of a base class in `sources` has that one's docstring, and an overload that of its implementation.
    """
    trees = {path: ast.parse(text, path) for path, text in sources.items()}
    classes = {c.name: c for tree in trees.values() for c in tree.body if isinstance(c, ast.ClassDef)}

    def inherits_docstring(node, name):
        bases = [classes[base] for base in (ast.unparse(b).split(".")[-1] for b in node.bases) if base in classes]
        return any(
            any(m.name == name and ast.get_docstring(m) for m in methods(base)) or inherits_docstring(base, name)
            for base in bases
        )

    for path, tree in trees.items():
        parts = pathlib.PurePosixPath(path).with_suffix("").parts
        if not all(is_public(part) or part == "__init__" for part in parts):
            continue
        if not ast.get_docstring(tree):
            yield f"{path}:1 module"
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or not is_public(node.name) or is_overload(node):
                continue
            if not ast.get_docstring(node):
                yield f"{path}:{node.lineno} {node.name}"
            for method in methods(node) if isinstance(node, ast.ClassDef) else []:
                if not (ast.get_docstring(method) or inherits_docstring(node, method.name) or is_overload(method)):
                    yield f"{path}:{method.lineno} {node.name}.{method.name}"


def is_overload(node):
    return any(ast.unparse(decorator).endswith(("overload", ".setter")) for decorator in node.decorator_list)


def test_every_public_name_has_a_docstring():
    paths = sorted((ROOT / "diffjax").rglob("*.py"))
    assert not list(undocumented({p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8") for p in paths}))


def test_a_missing_docstring_is_found():
    source = '''
class Base:
    """A base."""
    def a(self):
        """Documented."""
    def b(self): ...

class Derived(Base):
    def a(self): ...
    def b(self): ...

def f(): ...
def _private(): ...
'''
    expected = ["m.py:1 module", "m.py:6 Base.b", "m.py:8 Derived", "m.py:10 Derived.b", "m.py:12 f"]
    assert list(undocumented({"m.py": source})) == expected


def python_blocks(text):
    """(line of the first statement, source) of each run of ```python blocks in a Markdown text.

    A block opened by ```python has a namespace of its own; one opened by ```python continued goes on in that of the
    block before it, and is of the same run.
    """
    runs = []
    for match in re.finditer(r"^```python([^\n]*)\n(.*?)^```\s*$", text, re.MULTILINE | re.DOTALL):
        line = text[: match.start(2)].count("\n") + 1
        if match[1].strip() == "continued" and runs:
            first, source = runs[-1]
            runs[-1] = first, source + "\n" * (line - first - source.count("\n")) + match[2]
        else:
            runs.append((line, match[2]))
    return runs


README = (ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else ""


def test_readme_has_python():
    assert python_blocks(README)


@pytest.mark.parametrize("line, source", [pytest.param(*b, id=f"line {b[0]}") for b in python_blocks(README)])
def test_readme_python_runs(line, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile("\n" * (line - 1) + source, ROOT / "README.md", "exec"), {"__name__": "readme"})


def test_python_blocks_are_found_with_their_lines():
    text = "a\n```python\nx = 1\n```\n```sh\nls\n```\n```python continued\nx + 1\n```\n```python\ny\n```\n"
    assert python_blocks(text) == [(3, "x = 1\n" + "\n" * 5 + "x + 1\n"), (12, "y\n")]


def product_files():
    """Every file that git tracks or would, or without git every file outside hidden and output folders."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode == 0:
        return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]
    outputs = {"runs", "build", "dist", "__pycache__"}
    hidden = lambda part: part.startswith(".") and part != ".ci"  # noqa: E731
    inside = ((path, path.relative_to(ROOT).parts) for path in ROOT.rglob("*") if path.is_file())
    return [path for path, parts in inside if not any(hidden(p) or p in outputs for p in parts[:-1])]


# each is written so that this file does not contain it
FORBIDDEN = re.compile(
    "|".join([r"\.\./" + "shared", r"(?i:issue) #", "/work" + "/", r"\bTO" + r"DO\b", r"\bFIX" + r"ME\b"])
)


def test_the_text_speaks_of_the_product_alone():
    found = []
    for path in product_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{i}: {line.strip()}" for i, line in enumerate(lines, 1) if FORBIDDEN.search(line)
        ]
    assert not found
