"""Operations of a training step, and the peak of the device."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax

from diffjax import networks
from experiments.train import objective
from experiments.train.config import Config
from experiments.train.model import Model

PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "L4": 121e12,
}
"""Operations per second of matrix products in bfloat16, without sparsity, per
device of JAX, by words of its `device_kind`.

From Google's pages of its TPU versions (v5 lite is v5e, v5 is v5p, v6 lite is
v6e), and from NVIDIA's data sheets, of which half of the numbers "with sparsity".
"""


def peak(kind: str) -> float | None:
    """The peak of a device.

    Args:
      kind: `device_kind` of JAX.

    Returns:
      Operations per second, None for a device that is not known.
    """
    # The longest name decides: "TPU v5 lite" is no "TPU v5".
    words = kind.replace("-", " ")
    matching = [name for name in PEAKS if re.search(rf"\b{name}\b", words)]
    return PEAKS[max(matching, key=len)] if matching else None


def step_operations(config: Config, model: Model, arrays: dict[str, Any]) -> int:
    """Operations of one training step, of which nothing runs.

    Products alone count, as in the utilisation that the literature reports, and
    none twice that rematerialisation repeats.

    Args:
      config: The flags.
      model: The model.
      arrays: The training arrays.

    Returns:
      The number, for all devices together.
    """
    fields = {field.name for field in dataclasses.fields(model.module)}
    plain = {"attention": "einsum", "remat": "none"}
    module = model.module.clone(**{k: v for k, v in plain.items() if k in fields})
    counted = dataclasses.replace(model, module=module)
    loss = objective.loss_of(config, counted)
    params = jax.eval_shape(lambda key: objective.init(config, counted, key), _key())
    batch = {
        name: jax.ShapeDtypeStruct((config.batch_size, *array.shape[1:]), array.dtype)
        for name, array in arrays.items()
    }
    gradient: Callable = jax.value_and_grad(loss, has_aux=True)
    return networks.flops(gradient, params, _key(), batch)


def _key():
    return jax.random.key(0)
