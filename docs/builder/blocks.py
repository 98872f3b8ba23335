"""The Python of a page: its blocks, the output that the page shows, its figures.

    python -m docs.builder.blocks [--write] [--figures FOLDER] PAGE.md [PAGE.md ...]

Runs the blocks of pages and compares what they print with what the pages show. With
`--write` the pages show what was printed. Figures that the blocks save go to `FOLDER`.

A block that opens with ```python has a namespace of its own. One that opens with
```python continued goes on in that of the block before it. The word `figure` after it
folds the block on the site. A ```text block right after a block is its output.
Any other fence of Python is a fault, because it would not be run.
"""

import argparse
import contextlib
import io
import os
import pathlib
import re
import sys
import tempfile
import time
import traceback
from typing import NamedTuple

CODE = r"^```python([^\n]*)\n(.*?)^```[ ]*$"
FENCE = re.compile(
    CODE + r"(?:\s*^```text\n(.*?)^```[ ]*$)?",
    re.MULTILINE | re.DOTALL,
)
"""A block, and the output that stands right after it."""

OPENING = re.compile(r"[\s>]*(?:[-*+] +|\d+[.)] +)?(`{3,}|~{3,})[ \t]*([^`]*)")
PYTHON = re.compile(r"\{? *\.?(?:i?python|pycon|py(?![a-z]))", re.IGNORECASE)
WORDS = ("continued", "figure")

PAGES = pathlib.Path(__file__).parents[1] / "pages"
CHECKED = ("start", "tutorials", "howto", "concepts")
"""Folders whose pages state no decimal number that their code does not print."""

NUMBER = re.compile(r"(?<![\w.])[-−+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?(?![\w])")


class Block(NamedTuple):
    """A block of Python.

    Attributes:
      line: Line of its first statement in the page, from 1.
      source: Its Python.
      output: What the page shows below it. None if it shows nothing.
      continued: True if it goes on in the namespace of the block before.
      folded: True for the code of a figure.
      end: Position after its closing fence.
      output_span: Where the output stands in the page. None without output.
    """

    line: int
    source: str
    output: str | None
    continued: bool
    folded: bool
    end: int
    output_span: tuple[int, int] | None


class Outcome(NamedTuple):
    """The outcome of running a page.

    Attributes:
      printed: What each block printed.
      faults: Messages, empty if the page is right.
      seconds: Time of all blocks.
    """

    printed: list[str]
    faults: list[str]
    seconds: float


def blocks(text: str) -> list[Block]:
    """The blocks of Python of a page, in their order.

    Args:
      text: The Markdown.

    Returns:
      The blocks.
    """
    result = []
    for match in FENCE.finditer(text):
        words = match[1].split()
        result.append(
            Block(
                line=text[: match.start(2)].count("\n") + 1,
                source=match[2],
                output=match[3],
                continued="continued" in words and bool(result),
                folded="figure" in words,
                end=match.start(2) + len(match[2]) + len("```"),
                output_span=None if match[3] is None else match.span(3),
            )
        )
    return result


def misread(text: str, name: str) -> list[str]:
    """Fences of a page that are not what they seem.

    Args:
      text: The Markdown.
      name: Name of the page, for messages.

    Returns:
      Messages for fences of Python that are not found as blocks, for unknown words
      after ```python, and for fences that do not end.
    """
    matched = {(b.line - 1, text[: b.end].count("\n") + 1) for b in blocks(text)}
    faults = []
    fault = lambda line, message: faults.append(f"{name}:{line}: {message}")
    fence, words, start = "", "", 0
    for line, content in enumerate(text.split("\n"), 1):
        if not (match := OPENING.fullmatch(content)):
            continue
        marks, info = match[1], match[2].strip()
        if not fence:
            fence, words, start = marks, info, line
        elif marks.startswith(fence) and info:
            fault(line, f"a fence opens inside that of line {start}")
        elif marks.startswith(fence):
            first, *others = words.split() or [""]
            is_block = first == "python" and (start, line) in matched
            unknown = " ".join(word for word in others if word not in WORDS)
            if PYTHON.match(words) and not is_block:
                fault(start, f"{fence}{words} is not run: begin a line with ```python")
            elif is_block and unknown:
                fault(start, f"{unknown} must be one of {', '.join(WORDS)}")
            fence = ""
    if fence:
        fault(start, "the fence is not closed")
    return faults


def run(text: str, name: str, folder: pathlib.Path) -> Outcome:
    """Run the blocks of a page.

    Args:
      text: The Markdown.
      name: Name of the page, for messages.
      folder: The working folder of the blocks, where they save figures.

    Returns:
      The outcome. A page stops at its first error. The outputs of that block and of
      later ones are missing. A page with a fault of its fences is not run.
    """
    if faults := misread(text, name):
        return Outcome([], faults, 0.0)
    # Set before matplotlib is imported, as no window may open.
    os.environ["MPLBACKEND"] = "agg"
    printed, faults, start = [], [], time.perf_counter()
    namespace: dict = {}
    with contextlib.chdir(folder):
        for block in blocks(text):
            if not block.continued:
                namespace = {"__name__": "page"}
            stream = io.StringIO()
            try:
                program = compile("\n" * (block.line - 1) + block.source, name, "exec")
                with contextlib.redirect_stdout(stream):
                    exec(program, namespace)
            except (Exception, SystemExit) as error:
                lines = [
                    frame.lineno
                    for frame in traceback.extract_tb(error.__traceback__)
                    if frame.filename == name
                ]
                line = lines[-1] if lines else block.line
                faults.append(f"{name}:{line}: {type(error).__name__}: {error}")
                break
            printed.append(stream.getvalue())
            if fault := difference(printed[-1], block.output or ""):
                faults.append(f"{name}:{block.line}: {fault}")
    _close_figures()
    return Outcome(printed, faults, time.perf_counter() - start)


def _close_figures():
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def difference(printed: str, shown: str) -> str:
    """Compare what a block printed with what its page shows.

    Words must be equal up to spaces. A number of k shown decimals may differ by one
    unit of the last of them: other devices sum in another order. A number such as 2e3
    stands for all that round to it. Other integers must be equal.

    Args:
      printed: The output.
      shown: The text of the page.

    Returns:
      A message. Empty if they agree.
    """
    words = lambda text: " ".join(NUMBER.sub("#", text).replace("[", " [ ").split())
    said = f"it prints\n{printed.rstrip()}\nand the page shows\n{shown.rstrip()}"
    if words(printed) != words(shown):
        return said
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True)
    for actual, expected in pairs:
        units = 1.001 if "." in expected else 0.501
        if abs(number(actual) - number(expected)) > units * unit(expected):
            return f"{actual} is not the page's {expected}: {said}"
    return ""


def number(text: str) -> float:
    """The number that a text states, with a minus of either kind."""
    return float(text.replace("−", "-"))


def unit(text: str) -> float:
    """One unit in the last stated digit of a number, 0 for an integer without e."""
    mantissa, _, exponent = text.lower().partition("e")
    decimals = len(mantissa.partition(".")[2])
    scale = 10.0 ** int(exponent or 0)
    return scale * 10.0**-decimals if "." in mantissa or exponent else 0.0


def unsupported(text: str, printed: list[str]) -> list[str]:
    """Decimal numbers in the prose of a page that its code neither holds nor prints.

    Args:
      text: The Markdown.
      printed: What its blocks printed.

    Returns:
      The numbers. One that is an output rounded to fewer digits is supported, and one
      before % by a hundredth of it. The code of figures supports none.
    """
    sources = (block.source for block in blocks(text) if not block.folded)
    known = [
        abs(number(match))
        for source in (*printed, *sources)
        for match in NUMBER.findall(source)
    ]
    prose = re.sub(r"\A---\n.*?^---\n", "", text, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", prose, flags=re.MULTILINE | re.DOTALL)
    # Code and formulas do not run across paragraphs.
    inline = r"{0}(?:[^{0}\n]|\n(?![ \t]*\n))*{0}"
    code, formula = inline.format("`"), inline.format(r"\$")
    prose = re.sub(rf"{code}|\]\([^)]*\)|{formula}", "", prose)

    def supported(stated, scale):
        value, tolerance = abs(number(stated)), 0.51 * unit(stated.rstrip("."))
        return any(abs(scale * entry - value) <= tolerance for entry in known)

    return [
        match[0]
        for match in NUMBER.finditer(prose)
        if "." in match[0].rstrip(".") or "e" in match[0]
        if not supported(match[0], 1)
        and not (
            prose[match.end() :].lstrip().startswith("%") and supported(match[0], 100)
        )
    ]


def with_outputs(text: str, printed: list[str]) -> str:
    """A page that shows what its blocks printed.

    Args:
      text: The Markdown.
      printed: The output of each block.

    Returns:
      The Markdown with ```text blocks.
    """
    for block, output in reversed(list(zip(blocks(text), printed, strict=False))):
        output = output.rstrip() + "\n" if output.strip() else ""
        if block.output_span is not None:
            start, end = block.output_span
            text = text[:start] + output + text[end:]
        elif output:
            shown = f"\n\n```text\n{output}```"
            text = text[: block.end] + shown + text[block.end :]
    return text


def read(page: pathlib.Path) -> str:
    """The text of a page.

    Args:
      page: Its file.

    Returns:
      The Markdown.

    Raises:
      ValueError: If there is no such file, or it is not UTF-8.
    """
    try:
        return page.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        reason = f"not UTF-8: byte {error.start} is {error.object[error.start]:#04x}"
        raise ValueError(f"{page}: {reason}") from error
    except OSError as error:
        raise ValueError(f"{page}: {error.strerror}") from error


def main() -> None:
    """Run the pages that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[2])
    parser.add_argument("pages", nargs="+", type=pathlib.Path, metavar="PAGE.md")
    parser.add_argument("--write", action="store_true", help="show what was printed")
    parser.add_argument("--figures", type=pathlib.Path, help="folder of the figures")
    options = parser.parse_args()
    failed = False
    for page in options.pages:
        try:
            text = read(page)
        except ValueError as error:
            print(error)
            failed = True
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.figures or pathlib.Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            outcome = run(text, str(page), folder)
        print(f"{page}: {outcome.seconds:.1f} s")
        complete = len(outcome.printed) == len(blocks(text)) > 0
        if options.write and complete:
            text = with_outputs(text, outcome.printed)
            page.write_text(text, encoding="utf-8")
            outcome = outcome._replace(faults=[])
        for fault in outcome.faults:
            print(fault)
        if numbers := unsupported(text, outcome.printed):
            print(f"not printed by its code: {', '.join(numbers)}")
            failed |= any(page.resolve().is_relative_to(PAGES / f) for f in CHECKED)
        failed |= bool(outcome.faults)
    sys.exit(failed)


if __name__ == "__main__":
    main()
