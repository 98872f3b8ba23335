"""Samplers by name: those of a module, and those of three libraries.

package.module:function      a function (denoiser, x, sigmas) -> x
diffjax:unipc(3)             a factory of `diffjax.solvers`
k_diffusion:heun             `sample_heun`, with keywords as in `heun(s_churn=1.0)`
diffusers:DDIMScheduler      a scheduler, with its configuration in parentheses
"""

import ast
import difflib
import functools
import importlib
import inspect
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from diffjax import noise, solvers
from diffjax.solvers import driver, noise_source
from experiments.certify.recording import Sampler, current_denoiser, draw
from experiments.shared.peers import k_diffusion_sampling
from experiments.shared.schedulers import run_scheduler
from experiments.shared.solvers import SOLVERS, make

__all__ = ["LIBRARIES", "VARIANTS", "names_of", "resolve"]

LIBRARIES = ("diffjax", "k_diffusion", "diffusers")


def resolve(name: str, arrays: str = "auto", images: bool = False) -> Sampler:
    """The sampler of a name.

    Args:
      name: package.module:function, or library:expression, see above. Of diffjax it
        may also be a name of the benchmarks' table.
      arrays: "numpy", "torch", "jax", or "auto" for the library that the module
        of the function imports. Libraries' samplers ignore it.
      images: Whether the function takes states of shape (B, D, 1, 1).

    Returns:
      The sampler.

    Raises:
      ValueError: If there is none of this name.
    """
    module, _, expression = name.partition(":")
    if not expression:
        raise ValueError(f"a sampler is named package.module:function, got {name!r}")
    if module == "diffjax" and expression in SOLVERS:
        return _of_solver(name, make(expression))
    if module in _ADAPTERS:
        function, args, kwargs = _call(expression)
        return _ADAPTERS[module](name, function, args, kwargs)
    return _function(name, module, expression, arrays)._replace(images=images)


def names_of(library: str) -> tuple[str, ...]:
    """The names of a library's samplers.

    Args:
      library: Of `LIBRARIES`.

    Returns:
      Names for `resolve`.
    """
    expressions = {
        "diffjax": tuple(name for name in SOLVERS if name not in WITHOUT_TABLE),
        "k_diffusion": K_DIFFUSION,
        "diffusers": DIFFUSERS,
    }[library]
    return tuple(f"{library}:{expression}" for expression in expressions)


def _call(expression):
    """("name", args, kwargs) of the text name or name(literals)."""
    try:
        node = ast.parse(expression, mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, (), {}
        values = [ast.literal_eval(argument) for argument in node.args]
        named = {word.arg: ast.literal_eval(word.value) for word in node.keywords}
        return node.func.id, tuple(values), named
    except (SyntaxError, AttributeError, ValueError) as error:
        raise ValueError(
            f"a sampler is written name or name(numbers), got {expression!r}"
        ) from error


def _attribute(owner, name, kind):
    if not hasattr(owner, name):
        close = difflib.get_close_matches(name, dir(owner), 3)
        hint = f", did you mean {' or '.join(close)}" if close else ""
        raise ValueError(f"there is no {kind} {name!r}{hint}")
    return getattr(owner, name)


def _function(name, module, expression, arrays):
    sys.path.insert(0, os.getcwd())
    try:
        owner = importlib.import_module(module)
    except Exception as error:
        kind = type(error).__name__
        raise ValueError(
            f"{module} cannot be imported from {os.getcwd()} or the environment: "
            f"{kind}: {error}"
        ) from error
    finally:
        sys.path.pop(0)
    function = owner
    for part in expression.split("."):
        function = _attribute(function, part, f"function of {module} named")
    if not callable(function):
        raise ValueError(f"{name} must be a function, got {type(function).__name__}")
    if arrays == "auto":
        arrays = _arrays_of(function)
    return Sampler(name, function, arrays)


def _arrays_of(function):
    """The array library among the globals of a function."""
    inner = inspect.unwrap(function)
    used = {
        getattr(value, "__name__", "").partition(".")[0]
        for value in getattr(inner, "__globals__", {}).values()
        if inspect.ismodule(value)
    }
    return next((name for name in ("torch", "jax") if name in used), "numpy")


# -------------------------------------------------------------------------- diffjax


WITHOUT_TABLE = {
    "picard",
    "adaptive(1e-2)",
    "adaptive(1e-3)",
    "adaptive(1e-5)",
    "adaptive_sde",
    "predictor_corrector",
    "restart",
}
"""Solvers that choose their steps, repeat parts of them or read norms of the state."""


VARIANTS = (
    "ipndm(2, guarded=False)",
    "sa_solver(2, 0, 0.0, guarded=False)",
    "sa_solver(2, 0, 1.0, guarded=False)",
    "dpmpp_3m(corrected=False, guarded=False)",
    "dpmpp_3m_sde(corrected=False, guarded=False)",
)
"""Solvers as published elsewhere, with which samplers are also compared."""


def _of_diffjax(name, factory, args, kwargs):
    factory = _attribute(solvers, factory, "solver")
    return _of_solver(name, factory(*args, **kwargs))


def _of_solver(name, solver):
    def call(_, x, sigmas):
        """The schedule is α = 1, or the linear path where the grid starts at ∞."""
        linear = bool(np.isinf(sigmas[0]))
        ts = jnp.where(jnp.isinf(sigmas), 1.0, sigmas / (1 + sigmas))
        ts = ts if linear else sigmas
        draws = None
        if (next_draw := draw()) is not None:
            slots = (len(ts) - 1, noise.DRAWS_PER_STEP if solver.stochastic else 0)
            rows = [next_draw() for _ in range(slots[0] * slots[1])]
            draws = jnp.array(rows, float).reshape(*slots, x.shape[-1])
        program = _program(solver, linear, bool(ts[-1] == 0))
        # A short run takes less time operation by operation than to compile.
        with jax.disable_jit(len(ts) <= EAGER_STEPS + 1):
            end = program(x, ts, draws)
        return (1 + sigmas[-1]) * end if linear else end

    return Sampler(
        name,
        call,
        "jax",
        solver.order,
        solver.evaluations,
        compiled=True,
        draws=noise.DRAWS_PER_STEP if solver.stochastic else 0,
    )


EAGER_STEPS = 8
"""Steps of the longest run that is not compiled."""


@functools.cache
def _program(solver, linear, to_zero):
    """(x (B, D), ts, draws) -> the end of a solver's run, compiled once per shape."""

    def denoiser(x, t):
        sigma = t / (1 - t) if linear else t
        alpha = jnp.where(t < 1, 1 - t, 1.0) if linear else 1.0
        return current_denoiser(x / alpha, sigma)

    def run(x, ts, draws):
        low, high = ts[-2] if to_zero else ts[-1], ts[0]
        schedule = (
            dj.schedules.rectified_flow(t_min=low, t_max=high)
            if linear
            else dj.schedules.edm(low, high)
        )
        problem = solvers.diffusion(schedule, denoiser)

        def one(key, x):
            source = (
                noise_source.source_of(key, x, ts)
                if draws is None
                else noise_source.Source(lambda step, i: draws[step, i])
            )
            return driver.run(source, solver, problem, x=x, ts=ts, zero_end=to_zero)[0]

        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))
        return jax.vmap(one)(keys(jnp.arange(len(x))), x)

    options = {"xla_backend_optimization_level": 0}
    return jax.jit(run, compiler_options=options)


# ---------------------------------------------------------------------- k-diffusion


K_DIFFUSION = (
    "euler",
    "euler_ancestral",
    "heun",
    "dpm_2",
    "dpm_2_ancestral",
    "lms",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde(solver_type='heun')",
    "dpmpp_3m_sde",
)
ALONG_A_PATH = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")
"""Samplers whose default noise is that of one Brownian path."""


def _of_k_diffusion(name, method, args, kwargs):
    sampling = k_diffusion_sampling()
    if sampling is None:
        raise ValueError(
            "k-diffusion is not installed: pip install --no-deps k-diffusion "
            "torchdiffeq torchsde trampoline, and torch"
        )
    function = _attribute(sampling, f"sample_{method}", "sampler of k-diffusion")

    def call(denoiser, x, sigmas):
        keywords = dict(kwargs)
        if draw() is not None and method in ALONG_A_PATH:
            keywords["noise_sampler"] = _BrownianPath(x, draw())
        return function(denoiser, x, sigmas, *args, disable=True, **keywords)

    return Sampler(name, call, "torch")


class _BrownianPath:
    """Normalised increments of one Brownian path in σ, in terms of new draws."""

    def __init__(self, x, next_draw):
        self.x, self.next_draw = x, next_draw
        self.intervals, self.values = [], []

    def __call__(self, start, end):
        here = sorted((float(start), float(end)))
        if not np.isfinite(here).all():
            return self.x.new_tensor(self.next_draw()).expand_as(self.x)
        related = self._related(here)
        intervals = np.array([*(self.intervals[i] for i in related), here])
        low, high = intervals.T
        overlap = np.minimum.outer(high, high) - np.maximum.outer(low, low)
        lengths = high - low
        covariance = np.maximum(overlap, 0) / np.sqrt(np.outer(lengths, lengths))
        weights = np.linalg.pinv(covariance[:-1, :-1]) @ covariance[:-1, -1]
        rest = np.sqrt(max(0.0, 1 - covariance[-1, :-1] @ weights))
        value = rest * self.next_draw()
        for weight, i in zip(weights, related, strict=True):
            value = value + weight * self.values[i]
        self.intervals.append(here)
        self.values.append(value)
        return self.x.new_tensor(value).expand_as(self.x)

    def _related(self, here):
        """Earlier intervals that overlap this one, or one that does, and so on."""
        related: list[int] = []
        low, high = here
        for i in reversed(range(len(self.intervals))):
            start, end = self.intervals[i]
            if start < high and end > low:
                related.append(i)
                low, high = min(low, start), max(high, end)
        return related


# ------------------------------------------------------------------------ diffusers


DIFFUSERS = (
    "DDIMScheduler",
    "DDIMScheduler(eta=1.0)",
    "DDPMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverMultistepScheduler(solver_type='heun')",
    "DPMSolverMultistepScheduler(solver_order=3)",
    "DPMSolverMultistepScheduler(algorithm_type='sde-dpmsolver++')",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "UniPCMultistepScheduler(solver_order=3)",
    "DEISMultistepScheduler",
    "DEISMultistepScheduler(solver_order=3)",
    "SASolverScheduler",
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
)


def _of_diffusers(name, cls, args, kwargs):
    try:
        diffusers = importlib.import_module("diffusers")
    except ImportError as error:
        raise ValueError(
            "diffusers is not installed: pip install diffusers torch"
        ) from error
    if args:
        raise ValueError(f"the configuration of a scheduler has names, got {args}")
    scheduler = _attribute(diffusers, cls, "scheduler of diffusers")

    def call(denoiser, x, sigmas, begin=0):
        return run_scheduler(
            scheduler, kwargs, denoiser, x=x, sigmas=sigmas, begin=begin
        )

    return Sampler(name, call, "torch", partial=call)


_ADAPTERS = {
    "diffjax": _of_diffjax,
    "k_diffusion": _of_k_diffusion,
    "diffusers": _of_diffusers,
}
