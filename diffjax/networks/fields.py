"""Checks of the fields of networks. Each error has the field's name."""

from typing import Any

from .. import checks
from .dot_product import IMPLEMENTATIONS
from .remat import policy

__all__ = [
    "check_attention",
    "check_network",
    "check_resolutions",
    "condition",
    "frequencies",
]


def check_network(module: Any, **rules: Any) -> None:
    """Check the fields that all networks share, and others.

    Args:
      module: A network whose fields are set.
      **rules: A check per other field, as in `checks.attributes`.
    """
    checks.attributes(module, **NETWORK, **rules)
    condition(module)


def check_attention(module: Any) -> None:
    """Check the fields of a network with attention, and set `remat` by its policy.

    Args:
      module: A network with the fields `attention` and `remat`.
    """
    checks.attributes(module, attention=(checks.choice, IMPLEMENTATIONS))
    module.remat = policy("remat", module.remat)


def check_resolutions(module: Any) -> None:
    """Check the fields of a U-Net whose heads have a number of channels.

    Args:
      module: A network with the fields `width`, `multipliers`, `blocks`,
        `attention_resolutions` and `head_channels`. Lists become tuples.
    """
    many = (checks.integer_tuple, 1, checks.LARGEST_WIDTH, 1)
    size = checks.optional(checks.width, 1)
    checks.attributes(
        module, multipliers=many, blocks=(checks.depth, 1), head_channels=size
    )
    last = len(module.multipliers) - 1
    checks.attributes(module, attention_resolutions=(checks.integer_tuple, 0, last))
    # The middle, with attention, has the last resolution's channels.
    for resolution in {*module.attention_resolutions, last}:
        name = f"width * multipliers[{resolution}]"
        channels = module.width * module.multipliers[resolution]
        checks.divides("head_channels", module.head_channels or 1, name, channels)
    # Tuples, because fields must be hashable.
    module.multipliers = tuple(module.multipliers)
    module.attention_resolutions = tuple(module.attention_resolutions)


def frequencies(name: str, value: Any) -> None:
    """Raise an error unless a field is a pair 0 < lowest < highest.

    Args:
      name: The field's name.
      value: Its value.
    """
    checks.pair(name, value, "(lowest, highest) of angular frequencies")
    checks.ordered(f"{name}[0]", value[0], f"{name}[1]", value[1])


def condition(module: Any) -> None:
    """Raise an error unless a module's sizes of its condition are None or in range."""
    size = checks.optional(checks.width, 1)
    checks.attributes(module, num_classes=size, condition_dim=size)


NETWORK = {
    "width": (checks.width, 1),
    "dropout": (checks.within, 0.0, 1.0),
    "input_frequencies": (checks.integer, 0),
    "time_frequencies": frequencies,
    "time_features": checks.optional(checks.callable_, "time_features(t) -> (any,)"),
    "dtype": checks.optional(checks.floating),
}
"""Checks of the fields that all networks share."""
