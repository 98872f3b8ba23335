"""Formulas as MathML, made when the site is built, so that no page runs a script."""

import functools
import html
import re

from latex2mathml.converter import convert

FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL
)


@functools.cache
def mathml(latex: str, block: bool) -> str:
    """A formula as MathML.

    Args:
      latex: The formula without its delimiters.
      block: True for a line of its own.

    Returns:
      MathML.

    Raises:
      ValueError: If it is not LaTeX, or has a command that the converter does not know.
    """
    fault = lambda reason: ValueError(f"{reason} in the formula {latex}")
    if not balanced(latex):
        raise fault("the braces do not balance")
    try:
        result = convert(latex, display="block" if block else "inline")
    except Exception as error:  # its errors have no class of their own
        raise fault(" ".join(f"{type(error).__name__} {error}".split())) from error
    if unknown := re.search(r"\\(?:[a-zA-Z]+|.)", result):
        raise fault(f"{unknown[0]} is not known")
    return result


def balanced(latex: str) -> bool:
    """Whether the braces of a formula balance.

    Args:
      latex: The formula. Escaped braces do not count.

    Returns:
      False if one is missing.
    """
    depth = 0
    for brace in re.findall(r"\\.|[{}]", latex, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    return depth == 0


def rendered(content: str) -> str:
    """Replace the formulas of a page.

    Args:
      content: HTML of the page, with what the extension `arithmatex` leaves.

    Returns:
      HTML with MathML.

    Raises:
      ValueError: If a formula is not LaTeX.
    """

    def replace(match):
        block = match[2] == "["
        formula = mathml(html.unescape(match[3]).strip(), block)
        return f'<div class="formula">{formula}</div>' if block else formula

    return FORMULA.sub(replace, content)
