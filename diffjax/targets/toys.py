"""Toy densities in two dimensions."""

import numpy as np

from .. import checks
from .boxes import UniformBoxes, uniform_boxes
from .mixtures import Mixture, gaussian_mixture

__all__ = ["checkerboard", "circles", "eight_gaussians", "moons"]


def eight_gaussians() -> Mixture:
    """Eight Gaussians of standard deviation √⅛ on a circle of radius √8.

    Entropy 2.832 nats.
    """
    angles = 2 * np.pi * np.arange(8) / 8
    means = np.sqrt(8.0) * np.stack([np.cos(angles), np.sin(angles)], -1)
    return gaussian_mixture(np.full(8, 1 / 8), means, np.full(8, np.sqrt(1 / 8)))


def checkerboard() -> UniformBoxes:
    """The eight dark 2 × 2 squares of a board on [−4, 4]².

    Entropy log 32 = 3.466 nats.
    """
    lower = np.array(
        [
            (2 * i - 4, 2 * j - 4)
            for i in range(4)
            for j in range(4)
            if (i + j) % 2 == 0
        ],
        np.float32,
    )
    return uniform_boxes(np.full(8, 1 / 8), lower, lower + 2)


@checks.arguments(std=checks.positive, nodes=(checks.integer, 1, 2**16))
def circles(std: float = 0.24, nodes: int = 128) -> Mixture:
    """Two circles of radius 3 and 1.5 with Gaussian noise. Entropy 3.268 nats.

    A circle is the mixture of equally spaced Gaussians. It is exact up to the
    error of the trapezoid rule, below e^{−2π²(std/spacing)²}: under 1e-20 at
    the defaults.

    Args:
      std: The standard deviation of the noise. The entropy is that of 0.24.
      nodes: The number of Gaussians on a circle, at most 2¹⁶.

    Returns:
      A target over examples of shape (2,).

    Raises:
      ValueError: If std is not positive, or nodes out of range.

    Example:
      >>> dj.targets.circles().sample(key).shape
      (2,)
    """
    angles = 2 * np.pi * np.arange(nodes) / nodes
    ring = np.stack([np.cos(angles), np.sin(angles)], -1)
    means = np.concatenate([3.0 * ring, 1.5 * ring])
    return gaussian_mixture(
        np.full(2 * nodes, 0.5 / nodes), means, np.full(2 * nodes, std)
    )


@checks.arguments(std=checks.positive, nodes=(checks.integer, 1, 1024))
def moons(std: float = 0.2, nodes: int = 128) -> Mixture:
    """Two interleaved half circles of radius 2 with Gaussian noise. Entropy 2.394 nats.

    They are scikit-learn's moons, doubled and shifted by (−1, −0.2). An arc is
    a mixture over the nodes of a Gauss–Legendre rule in the angle, exact to
    rounding while std is not much below the spacing.

    Args:
      std: The standard deviation of the noise. The entropy is that of 0.2.
      nodes: The number of Gaussians on an arc, at most 1024.

    Returns:
      A target over examples of shape (2,).

    Raises:
      ValueError: If std is not positive, or nodes out of range.

    Example:
      >>> dj.targets.moons().sample(key).shape
      (2,)
    """
    abscissae, rule = np.polynomial.legendre.leggauss(nodes)
    angles = 0.5 * np.pi * (abscissae + 1)
    upper = np.stack([np.cos(angles), np.sin(angles)], -1)
    lower = np.stack([1 - np.cos(angles), 0.5 - np.sin(angles)], -1)
    means = 2 * np.concatenate([upper, lower]) + np.array([-1.0, -0.2])
    return gaussian_mixture(
        np.concatenate([rule, rule]) / 4, means, np.full(2 * nodes, std)
    )
