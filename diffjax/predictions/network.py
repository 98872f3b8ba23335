"""The denoiser of a network."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .. import checks, schedules
from ..schedules import Schedule
from ..schedules.chain import INDEXED
from ..types import (
    Array,
    Denoiser,
    Scalar,
    as_pytree,
    as_pytree_callable,
    one_program,
    pytree,
    static_field,
)
from .kinds import INPUTS, KINDS, input_scalings, rates_for

__all__ = ["NetworkDenoiser", "check_independent", "denoiser", "is_independent"]


@pytree
class NetworkDenoiser:
    """D(x, t) from a network F that predicts a kind, made by `denoiser`.

    It may be called with conditions after x and t, which are passed to the
    network.
    """

    schedule: Any
    net: Any
    sigma_data: Scalar
    kind: str = static_field()
    inputs: str = static_field()
    independent: bool = static_field(default=True)

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """E[x_0 | x_t = x], shape of x."""
        output = self.predict(x, t, *condition)
        # A prediction of the data is D itself, also where α or σ is 0.
        if self.kind == "data":
            return output.astype(checks.promoted(output.dtype, jnp.float32))
        return _denoised(self.schedule, self.kind, self.sigma_data, x, t, output)

    def predict(self, x: Array, t: Scalar, *condition: Any, **net_kwargs: Any) -> Array:
        """The output F of the network itself.

        Args:
          x: One example.
          t: A time, ().
          *condition: Further arguments of the network.
          **net_kwargs: The same, by keyword.

        Returns:
          F, shape of x.

        Raises:
          ValueError: If t is not scalar, or the network returns another shape.
        """
        checks.one_of_shapes("t", t, [()])
        if self.inputs == "raw":
            inputs = x, t
        else:
            inputs = _network_inputs(self.schedule, self.inputs, self.sigma_data, x, t)
        output = self.net(*inputs, *condition, **net_kwargs)
        return checks.example_shaped("net", output, x)

    def target(self, x0: Array, noise: Array, t: Scalar) -> Array:
        """The regression target a x_0 + b ε of the network.

        Args:
          x0: One example of the data.
          noise: ε, shape of x0.
          t: A time, ().

        Returns:
          The target, shape of x0.
        """
        a, b, _ = self._coefficients(t)
        return a * x0 + b * noise

    def output_scale(self, t: Scalar) -> Array:
        """The scale c(t) of the error in x_0: D − x_0 = c (F − target) in size.

        c = |σ / (aσ − bα)|
        """
        a, b, r = self._coefficients(t)
        return jnp.abs(r.sigma / (a * r.sigma - b * r.alpha))

    def _coefficients(self, t):
        r = rates_for(self.kind, self.schedule, t)
        return *KINDS[self.kind](r, self.sigma_data), r


@one_program
def _network_inputs(schedule, inputs, sigma_data, x, t):
    if inputs == "scaled":
        c_in, c_noise = input_scalings(schedule, t, sigma_data)
        return c_in * x, c_noise
    # The chain counts its indices from 1, most DDPM code its timesteps from 0.
    return x, schedules.index_of_time(schedule, t) - (inputs == "zero_index")


@one_program
def _denoised(schedule, kind, sigma_data, x, t, output):
    r = rates_for(kind, schedule, t)
    a, b = KINDS[kind](r, sigma_data)
    # x_0 = (σ F − b x) / (aσ − bα), divided term by term: σ and the difference
    # may both be small.
    gap = a * r.sigma - b * r.alpha
    return (r.sigma / gap) * output - (b / gap) * x


@checks.arguments(
    schedule=schedules.argument,
    net=(checks.callable_, "net(x, t)"),
    kind=(checks.choice, KINDS),
    inputs=(checks.choice, INPUTS),
    sigma_data=checks.positive,
    independent=checks.boolean,
)
def denoiser(
    schedule: Schedule,
    net: Callable,
    kind: str,
    *,
    sigma_data: Scalar = 0.5,
    inputs: str = "raw",
    independent: bool = True,
) -> NetworkDenoiser:
    """The denoiser (x, t) -> E[x_0 | x_t = x] of a network that predicts `kind`.

    Args:
      schedule: The noise schedule. Where α(t_max) = 0 (zero terminal SNR) the
        kinds "data", "v" and "velocity" can be used.
      net: F(x, t) -> array of x's shape, for one example x and a scalar t. It
        is a function, `functools.partial(model.apply, params)`, or an NNX or
        Equinox module. Further arguments (a condition) are passed on. Its
        arrays may change between calls and are never part of a compiled
        program, see `types.as_pytree_callable`.
      kind: What the network predicts, one of `KINDS`.
      sigma_data: The standard deviation of the data, (). The kind "edm" and
        scaled inputs use it.
      inputs: What net is called with. "raw": (x, t). "scaled": (c_in x,
        c_noise), inputs of unit variance and c_noise = −λ/8. The kind "edm" is
        always scaled. "index": (x, i) with the index i = 1 … T of a chain as
        an int32, exact at the times of the chain and the nearest one between.
        "zero_index": i − 1 = 0 … T − 1, the timesteps of most DDPM code.
      independent: False if the noise that net was fitted to depended on the
        data (optimal transport, reflow), see `check_independent`.

    Returns:
      The denoiser, a pytree. New parameters do not retrace.

    Raises:
      ValueError: If the kind or the inputs are unknown, sigma_data ≤ 0, or the
        kind or scaled inputs have no value where α = 0.
      TypeError: If net cannot be called, or inputs are indices and the
        schedule is no chain.

    Example:
      >>> import functools
      >>> def net(params, x, i):  # of integer timesteps 0 … 999
      ...     return params["w"] * x + params["of_step"][i]
      >>> params = {"w": jnp.ones(()), "of_step": jnp.zeros(1000)}
      >>> chain = dj.schedules.from_betas(dj.ddpm.linear_betas(1000))
      >>> net = functools.partial(net, params)
      >>> denoiser = dj.predictions.denoiser(chain, net, "noise", inputs="zero_index")
      >>> jax.jit(denoiser)(jnp.ones(2), 0.5).shape
      (2,)
    """
    inputs = "scaled" if kind == "edm" else inputs
    _check_inputs(schedule, kind, inputs)
    return NetworkDenoiser(
        as_pytree(schedule),
        as_pytree_callable(net),
        sigma_data,
        kind=kind,
        inputs=inputs,
        independent=independent,
    )


def _check_inputs(schedule, kind, inputs):
    if inputs.endswith("index"):
        checks.made_by("schedule", schedule, *INDEXED[1:])
    infinite = not checks.is_traced(schedule) and not schedules.is_finite(schedule)
    checks.require(
        not infinite or (inputs != "scaled" and kind not in ("noise", "score")),
        f"schedule must have α > 0 at t_max={schedule.t_max} for kind {kind!r} and "
        f"{inputs} inputs: lower it, or take kind 'data', 'velocity' or 'v' and raw "
        "or index inputs",
    )


def is_independent(denoiser: Denoiser) -> bool:
    """False if a denoiser was fitted to noise that depends on the data.

    It, or one among its children, then has the attribute `independent =
    False`. Such a mark within the closure of a plain function is not seen.
    """

    def marked(node):
        return getattr(node, "independent", True) is False

    if not callable(denoiser):
        return not marked(denoiser)
    children = jax.tree.leaves(as_pytree_callable(denoiser), is_leaf=marked)
    return not (marked(denoiser) or any(map(marked, children)))


def check_independent(purpose: str, denoiser: Denoiser) -> None:
    """Raise TypeError unless a denoiser was fitted to independent noise.

    Where ε depends on x_0, D = E[x_0 | x_t] and the velocity α′D + σ′ε̂ still
    belong to the distribution of x_t. So deterministic solvers, `encode` and
    `log_prob` hold. Tweedie's formula does not: (αD − x)/σ² is not ∇log p_t.
    Neither a stochastic solver nor guidance by a score then has the
    distribution that it claims.

    Args:
      purpose: What needs independent noise, for the message.
      denoiser: A denoiser, or any object.

    Raises:
      TypeError: If the denoiser is marked.
    """
    checks.require(
        is_independent(denoiser),
        f"{purpose} needs noise independent of the data, got a denoiser with "
        "independent=False, whose score is not (α D − x)/σ²; use a deterministic "
        "solver, such as heun()",
        TypeError,
    )
