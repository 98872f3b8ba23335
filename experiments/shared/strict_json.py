"""JSON that every reader takes, of numbers that may be NaN or infinite.

The standard has neither. They are written as the texts "NaN", "Infinity" and
"-Infinity".
"""

import json
import math
from typing import Any

import numpy as np

TEXTS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""The texts of the numbers that JSON lacks."""


def dumps(values: Any, indent: int | None = 2) -> str:
    """Write numbers, texts and arrays as JSON.

    Args:
      values: Dictionaries and lists of numbers, texts, None and arrays.
      indent: Spaces of each level. None for one line.

    Returns:
      The text, which ends with a line break.

    Raises:
      TypeError: For values of other types, such as sets or complex numbers.
    """
    return json.dumps(_plain(values), indent=indent, allow_nan=False) + "\n"


def loads(text: str) -> Any:
    """Read what `dumps` wrote, NaN and infinities as floats.

    Args:
      text: JSON.

    Returns:
      Its values.

    Raises:
      ValueError: If the text is not JSON.
    """
    return _floats(json.loads(text))


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        names = (name for name, other in TEXTS.items() if str(other) == str(value))
        return next(names, value)
    array = np.asarray(value)
    if array.dtype.kind not in "biufUV" or array.dtype.names is not None:
        raise TypeError(f"JSON has no {type(value).__name__}, got {value!r:.100}")
    if array.dtype.kind == "V":  # bfloat16 and its relatives
        array = array.astype(np.float64)
    return _plain(array.tolist())


def _floats(value):
    if isinstance(value, dict):
        return {key: _floats(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_floats(entry) for entry in value]
    return TEXTS.get(value, value) if isinstance(value, str) else value
