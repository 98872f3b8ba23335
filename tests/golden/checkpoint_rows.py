"""Transformers of DiT and SiT that tests compare with."""

import numpy as np

from tests.golden.reading import generator

__all__ = ["ROWS", "SMALL", "inputs"]

TINY = {
    "input_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 16,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 5,
}
OTHER = {
    "input_size": 12,
    "patch_size": 4,
    "in_channels": 3,
    "hidden_size": 20,
    "depth": 1,
    "num_heads": 5,
    "num_classes": 3,
    "mlp_ratio": 2.0,
    "class_dropout_prob": 0.0,
    "learn_sigma": False,
}
ROWS: dict[str, dict] = {
    "DiT/tiny": TINY,
    "DiT/other": OTHER,
    "SiT/tiny": TINY | {"num_heads": 4},
    "SiT/other": OTHER,
}
"""Arguments of the torch modules by the row's name."""

SMALL: dict[str, dict] = {
    f"{name}/small": {"hidden_size": 384, "depth": 12, "num_heads": 6}
    for name in ("DiT", "SiT")
}
"""DiT-S/2 and SiT-S/2."""


def inputs(row: str, config: dict) -> dict[str, np.ndarray]:
    """The inputs of a row by name, of one example with the channels last.

    Args:
      row: Its name.
      config: Its configuration.

    Returns:
      x, t as the repository counts it, and the label.
    """
    rng = generator(row)
    side, channels = config.get("input_size", 32), config.get("in_channels", 4)
    t = np.float64(487.0 if row.startswith("DiT") else 0.3)
    x = rng.normal(size=(side, side, channels))
    return {"x": x, "t": t, "label": np.int64(2)}
