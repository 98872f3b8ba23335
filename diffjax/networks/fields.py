"""Checks of the fields of networks. Each error has the field's name."""

from typing import Any

import jax.numpy as jnp

from .. import checks

__all__ = ["NETWORK", "check", "condition", "frequencies"]


def check(module: Any, **rules: Any) -> None:
    """Check fields of a module.

    Args:
      module: A module whose fields are set.
      **rules: A check per field, as in `checks.arguments`.
    """
    for name, rule in rules.items():
        function, *more = rule if isinstance(rule, tuple) else (rule,)
        function(name, getattr(module, name), *more)


def frequencies(name: str, value: Any) -> None:
    """Raise an error unless a field is a pair 0 < lowest < highest.

    Args:
      name: The field's name.
      value: Its value.
    """
    checks.require(
        isinstance(value, tuple | list) and len(value) == 2,
        f"{name} must be a pair (lowest, highest) of angular frequencies, got "
        f"{value!r}",
        TypeError,
    )
    checks.ordered(f"{name}[0]", value[0], f"{name}[1]", value[1])


def condition(module: Any) -> None:
    """Raise ValueError if a module's condition is both a class and a vector."""
    checks.require(
        module.num_classes is None or module.condition_dim is None,
        f"num_classes and condition_dim exclude each other, got num_classes="
        f"{module.num_classes}, condition_dim={module.condition_dim}",
    )
    check(module, **CONDITION)


def _floating(name: str, dtype: Any) -> None:
    checks.require(
        jnp.issubdtype(dtype, jnp.floating),
        f"{name} must be a floating-point dtype or None, got {dtype!r}",
        TypeError,
    )


CONDITION = {
    "num_classes": checks.optional(checks.width, 1),
    "condition_dim": checks.optional(checks.width, 1),
}
"""Checks of the two fields that describe a condition."""

NETWORK = {
    "width": (checks.width, 1),
    "dropout": (checks.within, 0.0, 1.0),
    "input_frequencies": (checks.integer, 0),
    "time_frequencies": frequencies,
    "time_features": checks.optional(checks.callable_, "time_features(t) -> (any,)"),
    "dtype": checks.optional(_floating),
}
"""Checks of the fields that all networks share."""
