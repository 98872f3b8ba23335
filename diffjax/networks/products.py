"""Dense layers, whose kernel gradient is one matrix product."""

from typing import Any

import jax
from flax import linen as nn
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from .. import checks
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
      **settings: Further settings of `jax.lax.dot_general`. A dense layer of
        Flax leaves them at None, and so must others.

    Returns:
      (..., O), in the common dtype of x and the kernel.

    Raises:
      ValueError: If one of the further settings is not None.

    Example:
      >>> dj.networks.products.product(jnp.ones((2, 3)), jnp.ones((3, 4))).shape
      (2, 4)
    """
    unset = all(value is None for value in settings.values())
    checks.require(unset, f"product takes no {', '.join(sorted(settings))}")
    precision = precision or jax.config.jax_default_matmul_precision
    if _has_mesh_types(x, kernel):
        return _product(x, kernel, precision=precision)
    return product_p.bind(x, kernel, precision=precision)


class Dense(nn.Dense):
    """`flax.linen.Dense` by `product`, with the same fields and parameters.

    Example:
      >>> layer = dj.networks.products.Dense(4)
      >>> params = layer.init(key, jnp.zeros(3))
    """

    dot_general: Any = product


product_p = Primitive("product")


def _has_mesh_types(*arrays: Array) -> bool:
    """Whether types state axes of a mesh: under `shard_map`, or explicitly sharded.

    The types of the primitive would drop them. Then its gradients would not
    type-check, and `shard_map` would take what varies along an axis for a
    constant. So `product` is JAX's own product there.
    """
    meshes = [jax.typeof(array).sharding.mesh for array in arrays]
    meshes.append(jax.sharding.get_abstract_mesh())
    return any(mesh.manual_axes or mesh.explicit_axes for mesh in meshes)


def _contract(x, y, x_axes, y_axes, precision):
    dimensions = ((x_axes, y_axes), ((), ()))
    return jax.lax.dot_general(x, y, dimensions, precision=precision)


@product_p.def_impl
def _product(x, kernel, *, precision):
    return _contract(x, kernel, (x.ndim - 1,), (0,), precision)


@product_p.def_abstract_eval
def _shape(x, kernel, *, precision):
    shape = (*x.shape[:-1], kernel.shape[1])
    return jax.core.ShapedArray(shape, jax.numpy.result_type(x, kernel))


def _by_x(cotangent, x, kernel, *, precision):
    """g kernelᵀ."""
    gradient = _contract(cotangent, kernel, (cotangent.ndim - 1,), (1,), precision)
    return gradient.astype(x.aval.dtype)


def _by_kernel(cotangent, x, kernel, *, precision):
    """xᵀ g over all axes but the last."""
    axes = tuple(range(x.ndim - 1))
    gradient = _contract(x, cotangent, axes, axes, precision)
    return gradient.astype(kernel.aval.dtype)


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
