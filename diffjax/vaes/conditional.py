"""Outputs of encoders and decoders as checked distributions, and their divergences."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import checks
from ..distributions.normal import (
    Gaussian,
    StandardNormal,
    check_gaussian,
    gaussian_kl,
    location_and_scale,
    variance_of_log_std,
)
from ..noise import normal
from ..types import Array, Key

__all__ = [
    "as_distribution",
    "as_gaussian",
    "as_prior",
    "has_closed_form",
    "kl",
    "log_prob",
    "not_finite",
    "reparameterised",
]


def as_gaussian(
    name: str, output: Any, shape: tuple[int, ...] | None = None
) -> Gaussian:
    """The output of an encoder as a `Gaussian` whose loc has the variable's shape.

    Args:
      name: The encoder's name, for messages.
      output: (mean, log_std) or a `Gaussian`.
      shape: Of the variable, where it is known.

    Returns:
      A `Gaussian`. Its var is () or of the variable's shape.

    Raises:
      TypeError: If the output is neither.
      ValueError: For shapes that do not fit, concrete NaN or infinity, or a
        concrete variance that is not positive, such as e^{2 log_std} of a
        log_std out of the dtype's range.
    """
    is_gaussian = isinstance(output, Gaussian)
    if is_gaussian:
        loc, spread = output.loc, output.var
    else:
        loc, spread = checks.pair(
            f"{name}'s output", output, "(mean, log_std) or a Gaussian"
        )
    spread_name = f"{name}'s {'variance' if is_gaussian else 'log_std'}"
    loc, spread = location_and_scale(f"{name}'s mean", loc, spread_name, spread)
    if shape is not None:
        checks.one_of_shapes(f"{name}'s mean", loc, [shape])
    if is_gaussian:
        return Gaussian(loc, checks.all_positive(spread_name, spread))
    return Gaussian(loc, variance_of_log_std(spread_name, spread))


def as_distribution(
    name: str, output: Any, shape: tuple[int, ...] | None = None
) -> Any:
    """The output of a kernel of the model as a distribution.

    A pair (mean, log_std) and a `Gaussian` become a checked `Gaussian`, see
    `as_gaussian`.

    Args:
      name: The kernel's name, for messages.
      output: A pair, or any object with log_prob(x).
      shape: Of the variable, where it is known.

    Returns:
      The distribution.
    """
    has_log_prob = callable(getattr(output, "log_prob", None))
    if isinstance(output, Gaussian) or not has_log_prob:
        return as_gaussian(name, output, shape)
    return output


def as_prior(prior: Any, shape: tuple[int, ...]) -> Any:
    """The prior of latents, a `Gaussian` where it has a closed form.

    Args:
      prior: None or `standard_normal(shape)` for N(0, I), a `Gaussian`, or any
        other distribution, which is returned unchanged.
      shape: Of a latent.

    Returns:
      The prior.
    """
    # Of shape (): it broadcasts to latents of any shape, and keeps the closed form.
    if prior is None:
        return Gaussian(0.0, 1.0)
    if isinstance(prior, StandardNormal):
        message = f"prior must be a distribution of latents of shape {shape}, got shape"
        checks.require(prior.shape == shape, f"{message} {prior.shape}")
        return Gaussian(0.0, 1.0)
    return check_gaussian("prior", prior, shape) if has_closed_form(prior) else prior


def has_closed_form(prior: Any) -> bool:
    """Whether the KL divergence of a Gaussian from this prior has a closed form."""
    return prior is None or isinstance(prior, StandardNormal | Gaussian)


def reparameterised(key: Key, counter: Any, gaussian: Gaussian) -> Array:
    """The draw loc + √var ε, differentiable in loc and var.

    Args:
      key, counter: ε is a function of the two.
      gaussian: A `Gaussian` with loc of the variable's shape.

    Returns:
      One draw.
    """
    loc = gaussian.loc
    # The noise does not depend on loc and var, so that gradients pass through both.
    return loc + jnp.sqrt(gaussian.var) * normal(key, counter, loc.shape, loc.dtype)


def log_prob(name: str, distribution: Any, x: Array) -> Array:
    """log p(x) of a distribution that a user's callable returned.

    Args:
      name: Whose output it is, for messages.
      distribution: An object with log_prob(x).
      x: One example.

    Returns:
      Nats, shape ().
    """
    checks.has_methods(name, distribution, "log_prob(x)")
    if isinstance(distribution, Gaussian):
        checks.one_of_shapes(f"{name}'s mean", distribution.loc, [(), x.shape])
    return checks.scalar_of(f"{name}'s log_prob", distribution.log_prob(x))


def kl(name: str, q: Gaussian, p: Any, z: Array) -> Array:
    """KL(q ‖ p), exact between Gaussians, otherwise at a draw.

    Args:
      name: Whose output p is, for messages.
      q: A `Gaussian`.
      p: Any distribution.
      z: A draw of q, for log q(z) − log p(z) where p is no Gaussian.

    Returns:
      Nats, shape ().
    """
    if not isinstance(p, Gaussian):
        return q.log_prob(z) - log_prob(name, p, z)
    return gaussian_kl(q, p)


def not_finite(values: Any) -> Any:
    """True in entries that are NaN or infinite."""
    return ~np.isfinite(values)
