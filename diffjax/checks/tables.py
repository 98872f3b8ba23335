"""Checks of arrays by name, as files of weights hold them."""

from collections.abc import Mapping

import numpy as np

from .edge import require

__all__ = ["state_dict"]


def state_dict(
    network: str,
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    source: str = "",
    *,
    exact: bool = False,
) -> None:
    """Raise ValueError unless a state dict holds the arrays of a network.

    Args:
      network: What the network is called, for the message.
      arrays: The state dict.
      shapes: Shape of each array by name.
      source: Where its file is to be had, for the message.
      exact: Whether the state dict must hold no further arrays, and floating-point
        numbers alone.

    Raises:
      ValueError: If an array is missing, unknown, of another shape, or not of
        finite real numbers.
    """
    missing = [name for name in shapes if name not in arrays]
    wrong = [
        f"{name} {arrays[name].shape} for {shape}"
        for name, shape in shapes.items()
        if name in arrays and arrays[name].shape != shape
    ]
    kinds = "fV" if exact else "biuf"  # bfloat16 has kind V
    bad = [
        name
        for name in shapes
        if name in arrays and not _is_finite(arrays[name], kinds)
    ]
    unknown = [name for name in arrays if exact and name not in shapes]
    faults = {"missing": missing, "of another shape": wrong, "unknown": unknown}
    faults |= {"not of finite numbers": bad}
    listed = "; ".join(f"{k}: {_few(v)}" for k, v in faults.items() if v)
    require(
        not listed,
        f"weights must be those of {network} ({len(shapes)} arrays). {listed}. The "
        f"file holds {len(arrays)} arrays: {_few(list(arrays))}. {source}".rstrip(),
    )


def _is_finite(array, kinds):
    array = np.asarray(array)
    return array.dtype.kind in kinds and np.isfinite(array).all()


def _few(names):
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
