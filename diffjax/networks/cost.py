"""The work of a network, counted from its program."""

import math
from collections.abc import Callable
from typing import Any

import jax

__all__ = ["flops"]


def flops(function: Callable, *arguments: Any, **settings: Any) -> int:
    """Count the floating-point operations of a function's products.

    Each multiplication and each addition of a matrix product or convolution is
    one. Norms and activations are not counted, as is usual for the utilisation
    of an accelerator: flops per second over its peak. The function is traced
    and not run. A loop counts as often as it runs, a Pallas kernel once per
    cell of its grid, and of a conditional the most expensive branch.

    cuDNN's kernels show no products. Set a network's `attention` to "einsum"
    here. Inside of `jax.shard_map` the products are those of one device.

    Args:
      function: Any function, such as a network's `apply`, or a loss and its
        gradients.
      *arguments: Its arguments. `jax.ShapeDtypeStruct` takes the place of an
        array.
      **settings: The same, by keyword. They are not traced.

    Returns:
      The number of operations.

    Raises:
      ValueError: If the function has products in a loop, or in a kernel over a
        grid, of unknown length.

    References:
      Chowdhery et al. 2022, PaLM, appendix B, for model FLOPs utilisation.

    Example:
      >>> dj.networks.flops(jnp.matmul, jnp.ones((2, 3)), jnp.ones((3, 5)))
      60
    """
    called = lambda *arguments: function(*arguments, **settings)
    return _count(jax.make_jaxpr(called)(*arguments).jaxpr)


def _count(program):
    """Operations of the equations of a program, and of those inside."""
    return sum(_of_equation(equation) for equation in program.eqns)


def _of_equation(equation):
    name, settings = equation.primitive.name, equation.params
    if name in ("dot_general", "product"):
        return _of_product(equation)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    inner = [
        _count(getattr(leaf, "jaxpr", leaf))
        for leaf in jax.tree.leaves(list(settings.values()))
        if hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")
    ]
    if name == "cond":
        return max(inner)
    times = _repetitions(name, settings)
    if times is None and any(inner):
        raise ValueError(
            "function must have no products in a loop or a grid of unknown length"
        )
    return (times or 0) * sum(inner)


def _repetitions(name, settings):
    """Number of times the program inside runs, None if that is unknown."""
    if name == "scan":
        return settings["length"]
    if name == "while":
        return None
    if name == "pallas_call":
        # The program is that of one cell, on blocks of the arrays.
        mapping = settings["grid_mapping"]
        return None if mapping.num_dynamic_grid_bounds else math.prod(mapping.grid)
    return 1


def _of_product(equation):
    left = equation.invars[0].aval.shape
    # A dense layer's product contracts the last axis.
    last = ((-1,), (0,)), ((), ())
    (contracted, _), _ = equation.params.get("dimension_numbers", last)
    terms = math.prod(left[axis] for axis in contracted)
    return 2 * math.prod(equation.outvars[0].aval.shape) * terms


def _of_convolution(equation):
    kernel = equation.invars[1].aval.shape
    _, inputs, *spatial = equation.params["dimension_numbers"].rhs_spec
    terms = math.prod(kernel[axis] for axis in (inputs, *spatial))
    return 2 * math.prod(equation.outvars[0].aval.shape) * terms
