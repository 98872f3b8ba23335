"""Words and shapes that the text of the sources must not contain.

    python -m tests.prose [--wrap] [PATH ...]

Prints one line per finding. Each path is a Python source, a Markdown page or a folder
of them, by default `diffjax`, `experiments`, `tests` and `docs`. With `--wrap` the
paragraphs of pages that have long or ragged lines are wrapped first.
"""

import ast
import inspect
import io
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]


class Finding(NamedTuple):
    """A place in a source that breaks a rule."""

    path: str
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.text}"


ALLOWED = re.compile(
    (
        r"\b(in law|power laws?|scaling laws?|law of (large "
        r"numbers|total|nature|cosines))\b"
    ),
    re.IGNORECASE,
)
"""The uses of that word for something else than a probability distribution."""

WORDS = {
    r"laws?": "distribution",
    r"answer(s|ed|ing)?": "denoised, output, result",
    r"refus(e|es|ed|al|als|ing)": "raises ValueError",
    r"mend(s|ed|ing)?": "corrects",
    r"(asks?|asked|asking)": "calls, requests",
    r"(tells?|told)": "returns, says",
    r"its due": "its share",
    r"as it is": "unchanged",
    r"(evaluations?|calls?|gradients?|draws?|NFE) an? step": "per step",
    r"places? of (a|the) chains?": "position",
    r"currency": "interface",
}
"""Words that do not come back, as regular expressions, each with what to write."""

WORD = re.compile(rf"\b({'|'.join(WORDS)})\b", re.IGNORECASE)

NAMES = {"own", "found", "each", "what", "given", "law", "laws", "answer", "answers"}
"""Names of variables and parameters that say nothing."""

LONGEST_PARAGRAPH = 5


def documented(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """(node, docstring) of a module, its classes, functions, constants and fields."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield node, text
        if isinstance(node, ast.Module | ast.ClassDef):
            for entry in node.body[1:]:
                value = entry.value if isinstance(entry, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield entry, inspect.cleandoc(value.value)


def prose(docstring: str) -> str:
    """A docstring without its examples and without what stands in backquotes."""
    lines = [
        "" if re.match(r"\s*(>>>|\.\.\. )", line) else line
        for line in docstring.splitlines()
    ]
    return re.sub(r"``?[^`\n]*``?", "", "\n".join(lines))


def paragraphs(docstring: str) -> Iterator[list[str]]:
    """Runs of lines of running text: neither empty, nor a section's entry."""
    run: list[str] = []
    for line in [*docstring.splitlines(), ""]:
        if line.strip() and not line.startswith(("  ", "- ")) and line[-1] != ":":
            run.append(line)
        elif run:
            yield run
            run = []


def in_prose(path: str, tree: ast.Module) -> Iterator[Finding]:
    """Words, semicolons, riddles and long paragraphs of docstrings."""
    for node, docstring in documented(tree):
        line = getattr(node, "lineno", 1)
        name = getattr(node, "name", "module")
        text = prose(docstring)
        for match in WORD.finditer(ALLOWED.sub("", text)):
            yield Finding(path, line, "word", f"{name}: {match[0]!r}")
        for _ in range(text.count(";")):
            yield Finding(path, line, "semicolon", name)
        if re.match(r"(What|Those|How|That which)\b", docstring):
            yield Finding(path, line, "riddle", docstring.splitlines()[0])
        for run in paragraphs(docstring):
            if len(run) > LONGEST_PARAGRAPH:
                yield Finding(
                    path, line, "paragraph", f"{name}: {len(run)} lines: {run[0]}"
                )


def in_comments(path: str, source: str) -> Iterator[Finding]:
    """Words of comments."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            for match in WORD.finditer(ALLOWED.sub("", token.string)):
                yield Finding(path, token.start[0], "word", f"comment: {match[0]!r}")


def in_strings(path: str, tree: ast.Module) -> Iterator[Finding]:
    """Words of messages, labels and titles: strings in calls and in f-strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call | ast.JoinedStr):
            for part in ast.iter_child_nodes(node):
                value = part.value if isinstance(part, ast.keyword) else part
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    for match in WORD.finditer(ALLOWED.sub("", value.value)):
                        yield Finding(
                            path, value.lineno, "word", f"string: {match[0]!r}"
                        )


def in_names(path: str, tree: ast.Module) -> Iterator[Finding]:
    """Names of variables and parameters that say nothing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.arg in NAMES:
            yield Finding(path, node.lineno, "name", node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            if node.id in NAMES:
                yield Finding(path, node.lineno, "name", node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            words = re.split(r"_|(?<=[a-z])(?=[A-Z])", node.name)
            if any(WORD.fullmatch(word) for word in words):
                yield Finding(path, node.lineno, "name", node.name)


def is_public(name: str) -> bool:
    """True for a name without a leading underscore."""
    return not name.startswith("_")


def parameters(node: ast.FunctionDef) -> list[str]:
    """Names of a function's parameters, without self and cls."""
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    starred = [entry for entry in (arguments.vararg, arguments.kwarg) if entry]
    names = [entry.arg for entry in [*plain, *starred]]
    return [name for name in names if name not in ("self", "cls")]


def arguments_of(docstring: str) -> set[str]:
    """Names that stand under `Args:` in a docstring. One line may hold several."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, re.MULTILINE | re.DOTALL)
    entries = (
        re.findall(r"^  (\*{0,2}\w[\w, *]*):", section[1], re.M) if section else []
    )
    return {name.strip(" *") for entry in entries for name in entry.split(",")}


def in_sections(path: str, tree: ast.Module) -> Iterator[Finding]:
    """Public functions of two or more arguments that do not list each of them.

    Methods count where their class states them first. One that has no docstring takes
    that of a base class.
    """
    functions: list[tuple[str, ast.FunctionDef]] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and is_public(node.name):
            functions.append((node.name, node))
        elif isinstance(node, ast.ClassDef) and is_public(node.name):
            functions += [
                (f"{node.name}.{method.name}", method)
                for method in node.body
                if isinstance(method, ast.FunctionDef) and is_public(method.name)
            ]
    for name, node in functions:
        docstring = ast.get_docstring(node)
        overload = any("overload" in ast.unparse(d) for d in node.decorator_list)
        if docstring is None or overload or len(parameters(node)) < 2:
            continue
        if missing := [p for p in parameters(node) if p not in arguments_of(docstring)]:
            yield Finding(path, node.lineno, "args", f"{name}: {', '.join(missing)}")


def in_source(path: str, source: str) -> list[Finding]:
    """All findings in one source.

    Args:
      path: Its path, from the root. The sections of docstrings are read in the library
        and in the shared parts of the experiments. A path that ends in `.md` is a
        page.
      source: Its text.

    Returns:
      The findings, in the order of the rules.
    """
    if path.endswith(".md"):
        return list(in_page(path, source))
    tree = ast.parse(source, path)
    findings = [*in_prose(path, tree), *in_comments(path, source)]
    if not path.startswith("tests/"):  # which quote the words to test the rules
        findings += in_strings(path, tree)
    findings += in_names(path, tree)
    private = any(part.startswith("_") and part[:2] != "__" for part in path.split("/"))
    if path.startswith(("diffjax/", "experiments/shared/")) and not private:
        findings += in_sections(path, tree)
    return findings


# ------------------------------------------------------------------- Markdown pages

COLUMNS = 88

RAGGED = 66
"""A line may end before this column only if the next word does not fit there."""

NOT_PROSE = (
    r"\A---\n.*?^---$",  # front matter
    r"^ *```.*?^ *```[^\n]*$",
    r"^ *\$\$.*?\$\$[.,]? *$",
    r"<!--.*?-->",
)
"""Parts of a page that are no running text."""

LINK = r"!?\[(?:[^][]|\[[^]]*\])*\]\([^)]*\)"

WORD_OF_PAGE = re.compile(rf"(?:`[^`]*`|\$[^$]*\$|{LINK}|\S)+")
"""A word of a page. Code, formulas and links may hold spaces."""

BETWEEN = re.compile(r" {4}|\s*(?:$|[|<#]|!\[|!!!|\?\?\?|:::)")
"""Lines between paragraphs: tables, HTML, headings, figures and indented text."""

ENTRY = re.compile(r"\s*(?:[-*+]|\d+\.) ")
"""The mark before an entry of a list."""


class Paragraph(NamedTuple):
    """Running text of a page: the number of its first line, from 1, and its lines."""

    number: int
    lines: list[str]


def of_page(page: str) -> list[Paragraph]:
    """The paragraphs of a Markdown page. Each entry of a list is one."""
    for pattern in NOT_PROSE:
        page = re.sub(
            pattern,
            lambda match: re.sub(r"[^\n]+", "", match[0]),
            page,
            flags=re.MULTILINE | re.DOTALL,
        )
    result: list[Paragraph] = []
    inside = False
    for number, line in enumerate(page.splitlines(), 1):
        if BETWEEN.match(line):
            inside = False
        elif inside and not ENTRY.match(line):
            result[-1].lines.append(line)
        else:
            result.append(Paragraph(number, [line]))
            inside = True
    return result


def wrapped(lines: list[str]) -> list[str]:
    """The words of a paragraph in lines of at most COLUMNS."""
    mark = ENTRY.match(lines[0])
    first = mark[0] if mark else ""
    text = re.sub(r"\s+", " ", "\n".join(lines)[len(first) :])
    # An equation stays in one line, and no line begins with the mark of an entry.
    text = re.sub(" ([=×±]) ", "\u2060\\1\u2060", text)
    words = WORD_OF_PAGE.findall(re.sub(r" ([-*+]|\d+\.)(?= |$)", "\u2060\\1", text))
    result = [first + words[0]]
    for word in words[1:]:
        if len(result[-1]) + 1 + len(word) <= COLUMNS:
            result[-1] += f" {word}"
        else:
            result.append(" " * len(first) + word)
    return [line.replace("\u2060", " ") for line in result]


def ill_wrapped(lines: list[str]) -> Iterator[tuple[int, str]]:
    """(index, rule) of the long and the ragged lines of a paragraph."""
    for i, line in enumerate(lines):
        following = WORD_OF_PAGE.match(" ".join(lines[i + 1 :]).strip())
        if len(line) > COLUMNS and len(WORD_OF_PAGE.findall(ENTRY.sub("", line))) > 1:
            yield i, "long"
        elif following and len(line) + 1 + len(following[0]) <= RAGGED:
            yield i, "ragged"


def in_page(path: str, page: str) -> Iterator[Finding]:
    """Long and ragged lines, long paragraphs and semicolons of a Markdown page."""
    for number, lines in of_page(page):
        for i, rule in ill_wrapped(lines):
            yield Finding(path, number + i, rule, lines[i])
        if len(lines) > LONGEST_PARAGRAPH:
            yield Finding(path, number, "paragraph", f"{len(lines)} lines: {lines[0]}")
        words = re.sub(r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)", "", "\n".join(lines))
        for _ in range(words.count(";")):
            yield Finding(path, number, "semicolon", lines[0])


def wrapped_page(page: str) -> str:
    """A Markdown page with its long and ragged paragraphs wrapped."""
    lines = page.split("\n")
    for number, old in reversed(of_page(page)):
        if any(True for _ in ill_wrapped(old)):
            lines[number - 1 : number - 1 + len(old)] = wrapped(old)
    return "\n".join(lines)


def files(paths: list[str]) -> list[pathlib.Path]:
    """Python sources and Markdown pages below the paths."""
    entries = [pathlib.Path(path).resolve() for path in paths]
    return sorted(
        source
        for entry in entries
        for source in (entry.rglob("*.[pm][yd]") if entry.is_dir() else [entry])
    )


def main() -> None:
    """Wrap pages if `--wrap` is given, then print the findings."""
    paths = [argument for argument in sys.argv[1:] if argument != "--wrap"]
    count = 0
    for path in files(paths or [str(ROOT / name) for name in SOURCES]):
        if "--wrap" in sys.argv and path.suffix == ".md":
            page = path.read_text(encoding="utf-8")
            path.write_text(wrapped_page(page), encoding="utf-8")
        for finding in in_source(
            path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        ):
            print(finding)
            count += 1
    print(f"{count} findings")


SOURCES = ("diffjax", "experiments", "tests", "docs")
"""Folders that are read."""


if __name__ == "__main__":
    main()
