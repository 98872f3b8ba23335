"""The networks of `bench_networks` in PyTorch, equal to ours weight for weight.

A module has the names of ours for its parts, so that a tree of Linen parameters is
its state after a change of layouts. Images are (batch, channels, height, width).
"""

import importlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from diffjax.networks import DiT, UNet, sinusoidal
from diffjax.networks.dit import positions
from diffjax.networks.unet import HALF, groups_of

torch: Any = importlib.import_module("torch")
nn: Any = torch.nn
functional: Any = importlib.import_module("torch.nn.functional")

TIME_FEATURES = 128


class GroupNorm(nn.GroupNorm):
    """Group norm of as many groups as ours."""

    def __init__(self, channels: int, affine: bool = True):
        super().__init__(groups_of(channels), channels, eps=1e-6, affine=affine)


class TimeEmbedding(nn.Module):
    """SiLU(Dense(SiLU(Dense(features)))), where the features of t are given."""

    def __init__(self, dim: int):
        super().__init__()
        self.Dense_0, self.Dense_1 = nn.Linear(TIME_FEATURES, dim), nn.Linear(dim, dim)

    def forward(self, features: Any) -> Any:
        """(batch, 128) -> (batch, dim)."""
        hidden = functional.silu(self.Dense_0(features))
        return functional.silu(self.Dense_1(hidden))


class Conditioning(nn.Module):
    """The vector that modulates every block."""

    def __init__(self, dim: int):
        super().__init__()
        self.TimeEmbedding_0 = TimeEmbedding(dim)

    def forward(self, features: Any) -> Any:
        """(batch, 128) -> (batch, dim)."""
        return self.TimeEmbedding_0(features)


class Modulation(nn.Module):
    """`count` vectors, linear in the conditioning vector."""

    def __init__(self, count: int, width: int, dim: int):
        super().__init__()
        self.count, self.Dense_0 = count, nn.Linear(dim, count * width)

    def forward(self, c: Any) -> Any:
        """(batch, dim) -> `count` of (batch, width)."""
        return self.Dense_0(c).chunk(self.count, dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention without biases of q, k and v."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.Dense_0 = nn.Linear(width, 3 * width, bias=False)
        self.Dense_1 = nn.Linear(width, width)

    def forward(self, h: Any) -> Any:
        """(batch, N, width) -> the same."""
        batch, n, width = h.shape
        # (batch, N, 3 width) -> three of (batch, heads, N, d)
        parts = self.Dense_0(h).reshape(batch, n, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.Dense_1(mixed.transpose(1, 2).reshape(batch, n, width))


class ResidualBlock(nn.Module):
    """Residual block of our U-Net."""

    def __init__(self, inputs: int, channels: int, dim: int):
        super().__init__()
        self.GroupNorm_0 = GroupNorm(inputs)
        self.Conv_0 = nn.Conv2d(inputs, channels, 3, padding=1)
        self.Modulation_0 = Modulation(2, channels, dim)
        self.GroupNorm_1 = GroupNorm(channels, affine=False)
        self.Conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        if inputs != channels:
            self.Dense_0 = nn.Conv2d(inputs, channels, 1)

    def forward(self, h: Any, c: Any) -> Any:
        """(batch, inputs, H, W) -> (batch, channels, H, W)."""
        branch = self.Conv_0(functional.silu(self.GroupNorm_0(h)))
        shift, scale = (v[:, :, None, None] for v in self.Modulation_0(c))
        branch = functional.silu(self.GroupNorm_1(branch) * (1 + scale) + shift)
        branch = self.Conv_1(branch)
        skip = self.Dense_0(h) if hasattr(self, "Dense_0") else h
        return (skip + branch) * HALF


class AttentionBlock(nn.Module):
    """Residual attention over all pixels."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.GroupNorm_0 = GroupNorm(channels)
        self.Attention_0 = Attention(channels, heads)

    def forward(self, h: Any) -> Any:
        """(batch, C, H, W) -> the same."""
        tokens = self.GroupNorm_0(h).flatten(2).transpose(1, 2)  # (batch, H W, C)
        mixed = self.Attention_0(tokens).transpose(1, 2).reshape(h.shape)
        return (h + mixed) * HALF


class TorchUNet(nn.Module):
    """Our U-Net without conditions. It shares its fields."""

    def __init__(self, net: UNet, channels: int):
        super().__init__()
        self.net, self.counts = net, {"ResidualBlock": 0, "AttentionBlock": 0}
        dim, width = 4 * net.width, net.width
        self.Conditioning_0 = Conditioning(dim)
        self.Conv_0 = nn.Conv2d(channels, width, 3, padding=1)
        current, skips = width, [width]
        for level, factor in enumerate(net.multipliers):
            skips += [current] * (level > 0)
            for _ in range(net.blocks):
                current = self._add_level(level, current, factor * width, dim)
                skips.append(current)
        self._add(ResidualBlock(current, current, dim))
        self._add(AttentionBlock(current, net.heads))
        self._add(ResidualBlock(current, current, dim))
        for level, factor in reversed([*enumerate(net.multipliers)]):
            for _ in range(net.blocks + 1):
                inputs = current + skips.pop()
                current = self._add_level(level, inputs, factor * width, dim)
        self.GroupNorm_0 = GroupNorm(current)
        self.Conv_1 = nn.Conv2d(current, channels, 3, padding=1)

    def _add_level(self, level: int, inputs: int, channels: int, dim: int) -> int:
        self._add(ResidualBlock(inputs, channels, dim))
        if level in self.net.attention_resolutions:
            self._add(AttentionBlock(channels, self.net.heads))
        return channels

    def _add(self, block: Any) -> None:
        """Number the block within its class, as Linen does."""
        kind = type(block).__name__
        self.add_module(f"{kind}_{self.counts[kind]}", block)
        self.counts[kind] += 1

    def forward(self, x: Any, features: Any) -> Any:
        """The network of images (batch, C, H, W) and the features of their times."""
        c = self.Conditioning_0(features)
        blocks = (getattr(self, f"ResidualBlock_{i}") for i in itertools.count())
        attentions = (getattr(self, f"AttentionBlock_{i}") for i in itertools.count())

        def block(level: int, h: Any) -> Any:
            h = next(blocks)(h, c)
            attends = level in self.net.attention_resolutions
            return next(attentions)(h) if attends else h

        levels = range(len(self.net.multipliers))
        h = self.Conv_0(x)
        skips = [h]
        for level in levels:
            if level > 0:
                h = functional.avg_pool2d(h, 2)
                skips.append(h)
            for _ in range(self.net.blocks):
                h = block(level, h)
                skips.append(h)
        h = next(attentions)(next(blocks)(h, c))
        h = next(blocks)(h, c)
        for level in reversed(levels):
            for _ in range(self.net.blocks + 1):
                h = block(level, torch.cat([h, skips.pop()], dim=1))
            if level > 0:
                h = functional.interpolate(h, scale_factor=2.0)
        return self.Conv_1(functional.silu(self.GroupNorm_0(h)))


def layer_norm(h: Any) -> Any:
    """Layer norm without parameters."""
    return functional.layer_norm(h, h.shape[-1:], eps=1e-6)


class DiTBlock(nn.Module):
    """Transformer block with adaLN-zero."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.Modulation_0 = Modulation(6, width, width)
        self.Attention_0 = Attention(width, heads)
        self.Dense_0, self.Dense_1 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, h: Any, c: Any) -> Any:
        """(batch, N, width) -> the same."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            v[:, None] for v in self.Modulation_0(c)
        )
        branch = self.Attention_0(layer_norm(h) * (1 + scale1) + shift1)
        h = h + gate1 * branch
        branch = self.Dense_0(layer_norm(h) * (1 + scale2) + shift2)
        branch = self.Dense_1(functional.gelu(branch, approximate="tanh"))
        return h + gate2 * branch


class AdaptiveLayerNorm(nn.Module):
    """Layer norm with a shift and a scale that are linear in c."""

    def __init__(self, width: int):
        super().__init__()
        self.Modulation_0 = Modulation(2, width, width)

    def forward(self, h: Any, c: Any) -> Any:
        """(batch, N, width) -> the same."""
        shift, scale = (v[:, None] for v in self.Modulation_0(c))
        return layer_norm(h) * (1 + scale) + shift


class TorchDiT(nn.Module):
    """Our DiT without conditions."""

    def __init__(self, net: DiT, channels: int, side: int):
        super().__init__()
        self.net, entries = net, net.patch**2 * channels
        self.Conditioning_0 = Conditioning(net.width)
        self.Dense_0 = nn.Linear(entries, net.width)
        for i in range(net.depth):
            hidden = round(net.mlp_ratio * net.width)
            self.add_module(f"DiTBlock_{i}", DiTBlock(net.width, net.heads, hidden))
        self.AdaptiveLayerNorm_0 = AdaptiveLayerNorm(net.width)
        self.Dense_1 = nn.Linear(net.width, entries)
        rows = side // net.patch
        code = np.array(positions(rows, rows, net.width))
        self.register_buffer("code", torch.from_numpy(code), persistent=False)

    def forward(self, x: Any, features: Any) -> Any:
        """The network of images (batch, C, H, W) and the features of their times."""
        batch, channels, height, width = x.shape
        p = self.net.patch
        # (batch, C, rows, p, columns, p) -> (batch, rows, columns, p, p, C)
        patches = x.reshape(batch, channels, height // p, p, width // p, p)
        tokens = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        c = self.Conditioning_0(features)
        h = self.Dense_0(tokens) + self.code
        for i in range(self.net.depth):
            h = getattr(self, f"DiTBlock_{i}")(h, c)
        h = self.Dense_1(self.AdaptiveLayerNorm_0(h, c))
        h = h.reshape(batch, height // p, width // p, p, p, channels)
        return h.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)


def twin(net: UNet | DiT, params: Any, side: int, channels: int) -> Any:
    """The module that is equal to our network.

    Args:
      net: The network, without conditions.
      params: Its parameters.
      side: Side of the images.
      channels: Their number of channels.

    Returns:
      The module (images (batch, C, H, W), features of times (batch, 128)) -> images.
    """
    if isinstance(net, UNet):
        module = TorchUNet(net, channels)
    else:
        module = TorchDiT(net, channels, side)
    expected = module.state_dict()
    state = {
        name: torch.from_numpy(value.reshape(expected[name].shape).copy())
        for name, value in by_name(params).items()
    }
    module.load_state_dict(state)
    return module


def by_name(tree: Any) -> dict[str, np.ndarray]:
    """Our parameters, or a gradient by them, in the names and layout of the module.

    Shapes lack the sides of convolutions of 1×1.
    """
    arrays = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree["params"])[0]:
        *parents, last = (entry.key for entry in path)
        name = ".".join([*parents, "bias" if last == "bias" else "weight"])
        value = np.asarray(leaf)
        if last == "kernel":
            # (..., in, out) -> (out, in, ...)
            value = np.moveaxis(value, (-1, -2), (0, 1))
        arrays[name] = value
    return arrays


def times(net: UNet | DiT, t: Any) -> Any:
    """The features of times that the module takes.

    Args:
      net: Our network.
      t: Times, (batch,).

    Returns:
      (batch, 128).
    """
    waves = np.array(sinusoidal(np.asarray(t), TIME_FEATURES, *net.time_frequencies))
    return torch.from_numpy(waves)


def images(x: Any) -> Any:
    """Images (batch, H, W, C) as a tensor (batch, C, H, W)."""
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


def comparable(ours: Any, theirs: Any) -> tuple[Any, Any]:
    """The results of two equal programs in one layout.

    Args:
      ours: Images (batch, H, W, C), or a gradient by our parameters.
      theirs: Images (batch, C, H, W), or a gradient by name.

    Returns:
      Images (batch, H, W, C) of both, or the entries of both gradients by name.
    """
    if not isinstance(theirs, dict):
        return np.asarray(ours), np.moveaxis(theirs.numpy(), 1, -1)
    of_ours = {name: value.ravel() for name, value in by_name(ours).items()}
    return of_ours, {name: value.numpy().ravel() for name, value in theirs.items()}


def forward(module: Any, x: Any, features: Any) -> Callable[[], Any]:
    """The program of one evaluation without gradients.

    Args:
      module: The network.
      x: Images, (batch, C, H, W).
      features: Features of the times, (batch, 128).

    Returns:
      The program, which returns images.
    """

    def program() -> Any:
        with torch.inference_mode():
            return module(x, features)

    return program


def gradients(module: Any, x: Any, features: Any) -> Callable[[], Any]:
    """The program of the gradient of the output's mean square by all parameters.

    Args:
      module: The network.
      x: Images, (batch, C, H, W).
      features: Features of the times, (batch, 128).

    Returns:
      The program, which returns the gradient by name.
    """
    parameters = dict(module.named_parameters())
    # A compiled module is a wrapper of that name.
    names = [name.removeprefix("_orig_mod.") for name in parameters]

    def program() -> Any:
        loss = (module(x, features) ** 2).mean()
        gradient = torch.autograd.grad(loss, list(parameters.values()))
        return dict(zip(names, gradient, strict=True))

    return program


def ddim(
    module: Any, x: Any, features: Any, coefficients: Sequence[tuple[float, float]]
) -> Callable[[], Any]:
    """The loop of x ← a x + b F(x, t) over the steps.

    Args:
      module: The network.
      x: Images at the first time, (batch, C, H, W).
      features: Features of the times, (steps, 128).
      coefficients: (a, b) of each step.

    Returns:
      The program, which returns images.
    """

    def program() -> Any:
        with torch.inference_mode():
            images = x
            for waves, (a, b) in zip(features, coefficients, strict=True):
                predicted = module(images, waves.expand(len(images), -1))
                images = a * images + b * predicted
            return images

    return program
