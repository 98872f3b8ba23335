"""The exact toy densities by name."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from diffjax import targets

from .dataset import Dataset

ToyName = Literal["eight_gaussians", "checkerboard", "circles", "moons"]
"""The type of a flag that names a toy density. Keys of `toy_flows` follow this
order.
"""

TOYS: dict[str, Callable[..., Any]] = {
    "eight_gaussians": targets.eight_gaussians,
    "checkerboard": targets.checkerboard,
    "circles": targets.circles,
    "moons": targets.moons,
}
TOY_EXAMPLES = 20_000


def toy(name: str, seed: int) -> Dataset:
    """Examples of a toy density.

    Args:
      name: A key of `TOYS`.
      seed: Of the examples.

    Returns:
      20 000 training and 2000 test examples, with the density as `target`.
    """
    target = TOYS[name]()
    draw = jax.jit(
        lambda key, count: jax.vmap(target.sample)(jax.random.split(key, count)),
        static_argnums=1,
    )
    keys = jax.random.split(jax.random.key(seed))
    train, test = (
        np.asarray(draw(key, count))
        for key, count in zip(keys, (TOY_EXAMPLES, 2000), strict=True)
    )
    return Dataset(name, train, test, None, 0.0, 1.0, target)
