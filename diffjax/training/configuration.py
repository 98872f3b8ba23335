"""A run's configuration as JSON, and its comparison with that of a checkpoint."""

import json
import pathlib
from collections.abc import Collection
from typing import Any

from .. import checks

__all__ = ["ABSENT", "as_json", "raise_if_other"]

ABSENT = "absent"
"""Stands in messages for a missing field or array."""


def as_json(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as JSON would return it, with tuples as lists.

    Raises:
      TypeError: If a value is none of JSON's. The message has the field.
    """
    for name, value in config.items():
        try:
            json.dumps({name: value})
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"config[{name!r}] must be a JSON value, got {value!r}: {error}"
            ) from None
    return json.loads(json.dumps(config))


def raise_if_other(
    folder: pathlib.Path,
    stored: dict[str, Any],
    config: dict[str, Any],
    ignore: Collection[str],
) -> None:
    """Compare the configuration of a checkpoint with that of a run.

    Args:
      folder: The checkpoint's folder, for the message.
      stored: Its configuration.
      config: The run's, as `as_json` returns it.
      ignore: Top-level fields that may differ.

    Raises:
      ValueError: If another field differs. The message has each with both
        values.
    """
    ignored = set(ignore)
    old, new = (
        _leaves({k: v for k, v in fields.items() if k not in ignored})
        for fields in (stored, config)
    )
    differing = [
        name
        for name in sorted(old.keys() | new.keys())
        if not _same(old.get(name), new.get(name))
    ]
    lines = "; ".join(
        f"{name}: stored {old.get(name, ABSENT)}, new {new.get(name, ABSENT)}"
        for name in differing
    )
    checks.require(
        not differing,
        f"{folder} is of another configuration ({lines}); resume with it, or use "
        "another directory",
    )


def _leaves(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Values as JSON text by dotted name. Only an empty dict is a value."""
    leaves: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = json.dumps(value)
    return leaves


def _same(old: str | None, new: str | None) -> bool:
    if old is None or new is None:
        return old == new
    # As text NaN equals itself, as values 1 equals 1.0.
    return old == new or json.loads(old) == json.loads(new)
