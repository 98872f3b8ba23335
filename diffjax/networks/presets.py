"""Networks of published sizes."""

from typing import Any

from .. import checks
from .dit import DiT
from .edm2 import EDM2

__all__ = ["DIT_SIZES", "EDM2_WIDTHS", "dit", "edm2"]

DIT_SIZES = {
    "S": {"depth": 12, "width": 384, "heads": 6},
    "B": {"depth": 12, "width": 768, "heads": 12},
    "L": {"depth": 24, "width": 1024, "heads": 16},
    "XL": {"depth": 28, "width": 1152, "heads": 16},
}
"""Depth, width and heads of a DiT (Peebles & Xie 2023, table 1)."""

PATCHES = (2, 4, 8)

EDM2_WIDTHS = {"XS": 128, "S": 192, "M": 256, "L": 320, "XL": 384, "XXL": 448}
"""Width of an EDM2 network (Karras et al. 2024, table 6)."""


@checks.arguments(
    name=(checks.choice, [f"{size}/{patch}" for size in DIT_SIZES for patch in PATCHES])
)
def dit(name: str, **fields: Any) -> DiT:
    """Make a diffusion transformer of a published size (Peebles & Xie 2023, table 1).

    At patches of 2, S has 33 million parameters, B 130, L 458 and XL 675
    (table 4), with 1000 classes and latents of 32 × 32 × 4. Theirs have biases
    of q, k and v, an output for the variance, and 256 features of the time
    where 128 are here. Their counts include the fixed position code. For XL
    these are 0.6 million parameters together.

    Args:
      name: Size and side of a patch, such as "B/2", of S, B, L, XL and 2, 4, 8.
      **fields: Other fields of `DiT`, or the same to change them.

    Returns:
      The network.

    Raises:
      ValueError: If there is no such size.

    Example:
      >>> dj.networks.dit("B/2", num_classes=1000).width
      768
    """
    size, patch = name.split("/")
    return DiT(**{**DIT_SIZES[size], "patch": int(patch), **fields})


@checks.arguments(name=(checks.choice, EDM2_WIDTHS))
def edm2(name: str, **fields: Any) -> EDM2:
    """Make an EDM2 network of a published size (Karras et al. 2024, table 6).

    XS has 125 million parameters, S 280, M 498, L 777, XL 1119 and XXL 1523,
    with 1000 classes and latents of 64 × 64 × 4.

    Args:
      name: XS, S, M, L, XL or XXL.
      **fields: Other fields of `EDM2`, or the same to change them.

    Returns:
      The network.

    Raises:
      ValueError: If there is no such size.

    Example:
      >>> dj.networks.edm2("XS", num_classes=1000).width
      128
    """
    return EDM2(**{"width": EDM2_WIDTHS[name], **fields})
