"""Options of a network's configuration: defaults, accepted values, relations.

Each class of networks states them in a table. `read` compares a configuration with
the table and names every option that is not supported.
"""

import itertools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .. import checks

__all__ = [
    "Option",
    "Rule",
    "choice",
    "list_of_choices",
    "flag",
    "ignored",
    "integer",
    "list_of",
    "number",
    "numbers",
    "only",
    "optional",
    "positive_integer",
    "read",
    "same_length",
    "one_or_list",
    "text",
]


class Option(NamedTuple):
    """One key of a configuration.

    Attributes:
      default: Its value where the configuration lacks it.
      accepts: Whether a value is supported, value -> bool.
      expects: The supported values in words, for messages.
    """

    default: Any
    accepts: Callable[[Any], bool]
    expects: str


class Rule(NamedTuple):
    """A relation between options.

    Attributes:
      holds: Whether options satisfy it, options -> bool.
      message: What must hold, a sentence with fields such as
        {block_out_channels}.
    """

    holds: Callable[[dict[str, Any]], Any]
    message: str


def _is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value):
    # JSON as Python reads it has nan and infinities.
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and abs(value) < float("inf")


def flag(default: bool | None) -> Option:
    """True or False."""
    return Option(default, lambda v: isinstance(v, bool), "true or false")


def integer(default: int | None, least: int = 0) -> Option:
    """An integer of at least `least`.

    Args:
      default: The default.
      least: The least accepted value.

    Returns:
      The option.
    """
    return Option(
        default,
        lambda v: _is_integer(v) and v >= least,
        f"an integer of at least {least}",
    )


def positive_integer(default: int | None) -> Option:
    """An integer of at least 1."""
    return integer(default, 1)


def number(
    default: float | None, above: float = -math.inf, below: float = math.inf
) -> Option:
    """A finite number between two bounds, which are not accepted themselves.

    Args:
      default: The default.
      above: The lower bound.
      below: The upper bound.

    Returns:
      The option.
    """
    words = [f"greater than {above}"] if above > -math.inf else []
    words += [f"less than {below}"] if below < math.inf else []
    expects = " ".join(["a finite number", " and ".join(words)]).rstrip()
    return Option(default, lambda v: _is_number(v) and above < v < below, expects)


def numbers(above: float = -math.inf) -> Option:
    """A list of finite numbers greater than a bound, or null by default.

    Args:
      above: The bound.

    Returns:
      The option.
    """
    return optional(list_of(number(None, above), None))


def same_length(*keys: str) -> Rule:
    """The rule that the lists of some options have one length."""
    *first, last = keys
    stated = [f"{{{key}}}" for key in keys]
    return Rule(
        lambda o: len({len(o[key]) for key in keys}) == 1,
        f"{', '.join(first)} and {last} must have one length, got "
        f"{', '.join(stated[:-1])} and {stated[-1]}",
    )


def text(default: str | None) -> Option:
    """Any string."""
    return Option(default, lambda v: isinstance(v, str), "a string")


def choice(default: Any, *values: Any) -> Option:
    """One of `values`, or the default.

    Args:
      default: The default.
      *values: Further values that are accepted.

    Returns:
      The option.
    """
    accepted = tuple(dict.fromkeys((default, *values)))
    return Option(
        default,
        lambda v: any(v == a and type(v) is type(a) for a in accepted),
        " or ".join(map(_json, accepted)),
    )


def only(value: Any) -> Option:
    """`value` alone: other values of the option are not supported."""
    value = _frozen(value)
    return Option(value, lambda v: v == value, _json(value))


def ignored(default: Any = None) -> Option:
    """Any value: the option does not affect what the network computes here."""
    return Option(default, lambda v: True, "anything")


def list_of_choices(default: tuple[Any, ...], *values: Any) -> Option:
    """A list whose entries are among `values`.

    Args:
      default: The default, a tuple.
      *values: The values of its entries.

    Returns:
      The option.
    """
    return Option(
        default,
        lambda v: isinstance(v, tuple) and v and all(entry in values for entry in v),
        "a list of " + ", ".join(map(_json, values)),
    )


def list_of(option: Option, default: tuple[Any, ...] | None) -> Option:
    """A list of values of `option`.

    Args:
      option: The option of one value.
      default: The default, a tuple.

    Returns:
      The option.
    """
    return Option(
        default,
        lambda v: isinstance(v, tuple) and v != () and all(map(option.accepts, v)),
        f"a list with entries that are {option.expects}",
    )


def one_or_list(option: Option, default: Any = None) -> Option:
    """One value of `option`, or a list of such values.

    Args:
      option: The option of one value.
      default: The default, where it is not that of `option`.

    Returns:
      The option.
    """
    return Option(
        option.default if default is None else _frozen(default),
        lambda v: (
            (all(map(option.accepts, v)) and v != ())
            if isinstance(v, tuple)
            else option.accepts(v)
        ),
        f"{option.expects}, or a list of these",
    )


def optional(option: Option) -> Option:
    """The same option, which may also be null.

    Args:
      option: The option. Its default stays.

    Returns:
      The option.
    """
    accepts = option.accepts
    return Option(
        option.default,
        lambda v: v is None or accepts(v),
        f"{option.expects}, or null",
    )


def read(
    config: Mapping[str, Any], name: str, options: Mapping[str, Option], rules: Any = ()
) -> dict[str, Any]:
    """Check a configuration against its table.

    Args:
      config: The configuration, as JSON has it. Keys that begin with an
        underscore are metadata and ignored.
      name: What is configured, for messages.
      options: The table.
      rules: Relations between options.

    Returns:
      The value of each option in the table. Lists have become tuples.

    Raises:
      ValueError: If an option is unknown, has a value that is not supported, or a
        relation does not hold. The message names all such options, or the first such
        relation.
    """
    stated = {k: _frozen(v) for k, v in config.items() if not k.startswith("_")}
    faults = _faults(stated, options)
    values = {key: option.default for key, option in options.items()} | stated
    if not faults:
        # The first alone: a rule may rely on those before it.
        broken = (r.message.format(**values) for r in rules if not r.holds(values))
        faults = [*itertools.islice(broken, 1)]
    checks.require(
        not faults,
        f"this configuration of {name} is not supported: {'; '.join(faults)}",
    )
    return values


def _faults(stated, options):
    """Sentences on options that are unknown or have unsupported values."""
    unknown = [
        f"the option {key} = {_json(value)} is unknown"
        for key, value in stated.items()
        if key not in options
    ]
    return unknown + [
        f"{key} must be {options[key].expects}, got {_json(value)}"
        for key, value in stated.items()
        if key in options
        # null where null is the default is the same as no entry
        and not (value is None and options[key].default is None)
        and not options[key].accepts(value)
    ]


def _frozen(value):
    """The same value with tuples for lists, at any depth."""
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    return value


def _json(value):
    return json.dumps(value, default=str)
