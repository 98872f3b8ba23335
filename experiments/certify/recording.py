"""Runs a sampler of any library on outputs and random numbers that are chosen here.

A sampler is a function (denoiser, x, sigmas) -> x of NumPy, PyTorch or JAX arrays. Its
denoiser is replaced by one that returns given arrays and remembers its calls. Its
normal random numbers are replaced where they come from the functions of `PATCHED`.
"""

import contextlib
import contextvars
import functools
import importlib
import io
import math
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "Run",
    "Sampler",
    "TooManyCalls",
    "current_denoiser",
    "double_precision",
    "draw",
    "record",
]

MOST_CALLS = 4096
"""Calls of one run, after which a sampler counts as endless."""

PATCHED = {
    "torch": (("torch", "randn"), ("torch", "randn_like")),
    "numpy": (("numpy.random", "randn"), ("numpy.random", "standard_normal")),
    "jax": (("jax.random", "normal"),),
}
"""Functions of each library whose normal numbers are replaced."""


class Sampler(NamedTuple):
    """A sampler to certify.

    Attributes:
      name: Its name in reports.
      call: (denoiser, x (B, D), sigmas (N + 1,)) -> (B, D). σ decreases, and
        x = x_0 + σ ε. With sigmas[0] = ∞, x is ε itself.
      arrays: "numpy", "torch" or "jax", the arrays that it takes.
      order: The order that it declares, None without one.
      evaluations: (steps, to_zero) -> the calls that it promises, or None.
      partial: (denoiser, x, sigmas, begin) -> (B, D), which starts a run of the whole
        grid at step `begin`, where the library has such a call. None without one.
      images: Whether x must have the shape (B, D, 1, 1).
      compiled: Whether a run of JAX arrays may be compiled.
      draws: Replaced draws per step, of an adapter that takes all of them.
    """

    name: str
    call: Callable[..., Any]
    arrays: str
    order: int | None = None
    evaluations: Callable[..., int | None] | None = None
    partial: Callable[..., Any] | None = None
    images: bool = False
    compiled: bool = False
    draws: int = 0


class Run(NamedTuple):
    """A recorded run of a sampler.

    Attributes:
      sigmas: Noise level of each call, (K,).
      states: State at each call, (K, B, D).
      end: The result, (B, D).
      draws: How many random numbers per entry were replaced.
    """

    sigmas: np.ndarray
    states: np.ndarray
    end: np.ndarray
    draws: int


class TooManyCalls(RuntimeError):
    """The sampler calls the denoiser more than `MOST_CALLS` times."""


Outputs = Callable[[int, np.ndarray, float], np.ndarray]
"""(number of the call, states (B, D), σ) -> outputs, broadcast to (B, D)."""

Noise = Callable[[int], np.ndarray]
"""number of the draw -> normal numbers (D,), the same for each row of the batch."""

_DRAW: contextvars.ContextVar[Any] = contextvars.ContextVar("draw", default=None)


def draw() -> Callable[[], np.ndarray] | None:
    """The function that makes the next replaced draw (D,).

    Adapters of samplers that take their noise as an argument pass it on.

    Returns:
      The function. None where the sampler draws its own numbers.
    """
    return _DRAW.get()


def record(
    sampler: Sampler,
    x: np.ndarray,
    sigmas: np.ndarray,
    outputs: Outputs,
    *,
    noise: Noise | None = None,
    seed: int = 0,
    begin: int | None = None,
) -> Run:
    """Run a sampler and record its calls.

    Args:
      sampler: The sampler.
      x: Starts (B, D).
      sigmas: Decreasing noise levels (N + 1,).
      outputs: What the denoiser returns.
      noise: What replaces the sampler's random numbers. None leaves it its own.
      seed: Seed of its own numbers.
      begin: Step at which `sampler.partial` starts. None for a run from the first.

    Returns:
      The run.

    Raises:
      TooManyCalls: If it does not end.
      ValueError: If the result is not of x's shape, or a call has several noise levels.
    """
    calls = _Calls(outputs, x.shape)
    to = _CONVERSIONS[sampler.arrays]
    start = x[..., None, None] if sampler.images else x
    function: Callable[..., Any] = sampler.call
    if begin is not None and sampler.partial is not None:
        function = functools.partial(sampler.partial, begin=begin)
    _seed(seed)
    quiet = contextlib.redirect_stdout(io.StringIO())
    _CURRENT["calls"] = calls
    with (
        _noise_replaced(noise, sampler.arrays) as count,
        _run_mode(sampler),
        quiet,
        np.errstate(all="ignore"),
    ):
        end = function(to.denoiser(calls), to.array(start), to.array(sigmas))
    end = np.asarray(end, np.float64)
    if end.shape != start.shape:
        raise ValueError(
            f"{sampler.name} must return the shape of x, {start.shape}, got {end.shape}"
        )
    states = np.array(calls.states).reshape(-1, *x.shape)
    return Run(np.array(calls.sigmas), states, end.reshape(x.shape), count())


class _Calls:
    """The denoiser of a recorded run, of NumPy arrays."""

    def __init__(self, outputs, shape):
        self.outputs, self.shape = outputs, shape
        self.sigmas, self.states = [], []

    def __call__(self, x, sigma):
        x = np.asarray(x, np.float64)
        levels = np.unique(np.asarray(sigma, np.float64))
        if levels.size != 1:
            raise ValueError(f"a call must have one noise level, got {levels}")
        if len(self.sigmas) == MOST_CALLS:
            raise TooManyCalls(f"more than {MOST_CALLS} calls of the denoiser")
        rows = x.reshape(-1, self.shape[-1])
        self.sigmas.append(float(levels[0]))
        self.states.append(rows[: self.shape[0]].copy())
        out = self.outputs(len(self.sigmas) - 1, rows, self.sigmas[-1])
        return np.broadcast_to(out, rows.shape).reshape(x.shape)


# ------------------------------------------------------------------ random numbers


@contextlib.contextmanager
def _noise_replaced(noise: Noise | None, arrays: str) -> Iterator[Callable[[], int]]:
    """Replace normal random numbers by `noise`, and count the draws."""
    drawn = 0
    if noise is None:
        yield lambda: drawn
        return

    def next_draw():
        nonlocal drawn
        drawn += 1
        return np.asarray(noise(drawn - 1), np.float64)

    def replaced(original, like):
        def normal(*args, **kwargs):
            sample = original(*args, **kwargs)
            row = next_draw()
            if math.prod(sample.shape) % row.size:
                return sample
            # np.resize repeats the row for each example.
            return like(sample, np.resize(row, tuple(sample.shape)))

        return normal

    with contextlib.ExitStack() as stack:
        for owner, name in PATCHED[arrays]:
            module = importlib.import_module(owner)
            original = getattr(module, name)
            stack.callback(setattr, module, name, original)
            setattr(module, name, replaced(original, _CONVERSIONS[arrays].like))
        token = _DRAW.set(next_draw)
        stack.callback(_DRAW.reset, token)
        yield lambda: drawn


def _seed(seed):
    random.seed(seed)
    np.random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


# ---------------------------------------------------------------------- conversions


class _Conversion(NamedTuple):
    """Conversions of arrays and of a denoiser to those of a library."""

    array: Callable[[np.ndarray], Any]
    denoiser: Callable[[_Calls], Callable[..., Any]]
    like: Callable[[Any, np.ndarray], Any]


def _torch_array(value):
    return importlib.import_module("torch").from_numpy(np.array(value, np.float64))


def _torch_denoiser(calls):
    def denoiser(x, sigma, *_, **__):
        level = getattr(sigma, "numpy", lambda: sigma)()
        out = calls(x.detach().numpy(), level)
        return _torch_array(out).to(x.dtype)

    return denoiser


_CURRENT: dict[str, _Calls] = {}
"""The denoiser of the present run, for JAX programs that outlive one run."""


def current_denoiser(x: Any, sigma: Any, *_: Any, **__: Any) -> Any:
    """The denoiser of the present run, of JAX arrays.

    Args:
      x: States, traced or not.
      sigma: Their noise level.

    Returns:
      An array of x's shape.
    """
    # A callback also has values where the sampler is vmapped or compiled.
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    call = lambda x, sigma: _CURRENT["calls"](x, sigma).astype(like.dtype)
    return jax.pure_callback(call, like, x, sigma, vmap_method="broadcast_all")


_CONVERSIONS = {
    "numpy": _Conversion(
        lambda value: np.array(value, np.float64),
        lambda calls: lambda x, sigma, *_, **__: calls(x, sigma),
        lambda sample, value: value,
    ),
    "torch": _Conversion(
        _torch_array, _torch_denoiser, lambda sample, value: sample.new_tensor(value)
    ),
    "jax": _Conversion(
        lambda value: jnp.asarray(value, float),
        lambda calls: current_denoiser,
        lambda sample, value: jnp.asarray(value, sample.dtype),
    ),
}


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """64-bit arrays in JAX, in all threads.

    `jax.enable_x64` holds for one thread only, and callbacks of compiled programs run
    in others.
    """
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


@contextlib.contextmanager
def _run_mode(sampler):
    """No gradients, and JAX operation by operation.

    A compiled function would keep the random numbers of its first run.
    """
    with contextlib.ExitStack() as stack:
        if not sampler.compiled:
            stack.enter_context(jax.disable_jit())
        if "torch" in sys.modules:
            stack.enter_context(sys.modules["torch"].no_grad())
        yield
