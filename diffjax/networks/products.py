"""Dense layers, whose kernel gradient is one matrix product."""

from typing import Any

import jax
from flax import linen as nn
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ..types import Array

__all__ = ["Dense", "product"]


def product(
    x: Array,
    kernel: Array,
    dimension_numbers: Any = None,
    precision: Any = None,
    **settings: Any,
) -> Array:
    """x · kernel, the `dot_general` of a dense layer of Flax.

    It is linear in x and in the kernel, with all derivatives. The gradient by
    the kernel is xᵀ g in one product over all tokens of all examples, also
    under `jax.vmap`. JAX's own rule computes (gᵀ x)ᵀ.

    XLA takes 22.4 ms for xᵀ g of (2048, 384) and (2048, 1536) on one CPU core,
    which is 108 GFLOP/s, and 40.4 ms for (gᵀ x)ᵀ.

    Args:
      x: (..., I).
      kernel: (I, O).
      dimension_numbers: Those of a dense layer, which Flax passes.
      precision: As in `jax.lax.dot_general`.
      **settings: Further settings of Flax, which a dense layer leaves at None.

    Returns:
      (..., O).
    """
    precision = precision or jax.config.jax_default_matmul_precision
    return product_p.bind(x, kernel, precision=precision)


class Dense(nn.Dense):
    """`flax.linen.Dense` by `product`, with the same fields and parameters."""

    dot_general: Any = product


product_p = Primitive("product")


def _contract(x, y, x_axes, y_axes, precision):
    dimensions = ((x_axes, y_axes), ((), ()))
    return jax.lax.dot_general(x, y, dimensions, precision=precision)


@product_p.def_impl
def _product(x, kernel, *, precision):
    return _contract(x, kernel, (x.ndim - 1,), (0,), precision)


@product_p.def_abstract_eval
def _shape(x, kernel, *, precision):
    shape = (*x.shape[:-1], kernel.shape[1])
    return jax.core.ShapedArray(shape, x.dtype)


def _by_x(cotangent, x, kernel, *, precision):
    """g kernelᵀ."""
    return _contract(cotangent, kernel, (cotangent.ndim - 1,), (1,), precision)


def _by_kernel(cotangent, x, kernel, *, precision):
    """xᵀ g over all axes but the last."""
    axes = tuple(range(x.ndim - 1))
    return _contract(x, cotangent, axes, axes, precision)


def _batched(arguments, axes, *, precision):
    """More rows of x where the kernel has no axis, and JAX's own rule otherwise."""
    if axes[1] is None:
        x = jax.numpy.moveaxis(arguments[0], axes[0], 0)
        return product_p.bind(x, arguments[1], precision=precision), 0
    one = lambda x, kernel: _product(x, kernel, precision=precision)
    return jax.vmap(one, axes)(*arguments), 0


ad.defbilinear(product_p, _by_x, _by_kernel)
batching.primitive_batchers[product_p] = _batched
mlir.register_lowering(product_p, mlir.lower_fun(_product, multiple_results=False))
