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
    """
    return convert(latex, display="block" if block else "inline")


def rendered(content: str) -> str:
    """Replace the formulas of a page.

    Args:
      content: HTML of the page, with what the extension `arithmatex` leaves.

    Returns:
      HTML with MathML.
    """

    def replace(match):
        block = match[2] == "["
        formula = mathml(html.unescape(match[3]).strip(), block)
        return f'<div class="formula">{formula}</div>' if block else formula

    return FORMULA.sub(replace, content)
