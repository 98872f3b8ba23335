"""The house's docstring sections, in the form that mkdocstrings reads."""

import re
from typing import Any

import griffe

SINGULAR = {"Example:": "Examples:", "Reference:": "References:"}


def prepared(text: str) -> str:
    """A docstring in Google's sections.

    Args:
      text: The docstring. A line under `Args:` may name several arguments.

    Returns:
      The docstring with one argument per line, and sections under the names that
      griffe knows.
    """
    lines, section = [], ""
    for line in text.splitlines():
        if line and not line.startswith(" "):
            section = line.strip()
            line = SINGULAR.get(section, line)
        several = re.match(r"(  )((?:\*{0,2}\w+, )+\*{0,2}\w+): (.*)", line)
        if several and section in ("Args:", "Attributes:"):
            names = several[2].split(", ")
            # Each name has the text of all, the first line of it suffices.
            lines += [f"  {name}: {several[3]}" for name in names[:-1]]
            line = f"  {names[-1]}: {several[3]}"
        lines.append(line)
    return "\n".join(lines)


class Sections(griffe.Extension):
    """Prepares every docstring that griffe loads."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Prepare the docstring of an object.

        Args:
          obj: The object.
          **kwargs: Unused.
        """
        if obj.docstring:
            text = prepared(obj.docstring.value)
            if obj.is_class:  # the fields of a dataclass or a Linen module
                text = re.sub("^Args:$", "Attributes:", text, flags=re.MULTILINE)
            obj.docstring.value = text
