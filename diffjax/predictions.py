"""What a network predicts, turned into the denoiser D(x, t) = E[x_0 | x_t = x], and views of a denoiser.

A kind is defined by F = a x_0 + b ε for two coefficients a(t), b(t); everything else follows from x = α x_0 + σ ε:
x_0 = (σ F − b x) / (aσ − bα).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import checks, schedules
from .distributions.discretised import level_moments
from .distributions.lattice import check_levels
from .schedules import Rates, Schedule
from .schedules.chain import Indexed
from .schedules.derived import as_time
from .types import (
    Array,
    ArrayLike,
    Denoiser,
    Scalar,
    as_pytree,
    as_pytree_callable,
    one_program,
    pytree,
    static_field,
)


class Scalings(NamedTuple):
    """EDM preconditioning, D(x; σ) = c_skip x + c_out F(c_in x; c_noise), each of shape ()."""

    skip: Array
    out: Array
    into: Array
    noise: Array


@one_program
def scalings(sigma: Scalar, sigma_data: Scalar) -> Scalings:
    """c_skip, c_out, c_in, c_noise for α = 1 at noise level sigma, in data units; sigma_data: the data's standard
    deviation.

    On another schedule use σ/α for sigma and x/α for x. Karras et al. 2022, Table 1.
    """
    sigma, variance = jnp.asarray(sigma), sigma**2 + sigma_data**2
    return Scalings(
        sigma_data**2 / variance,
        sigma * sigma_data / jnp.sqrt(variance),
        1 / jnp.sqrt(variance),
        jnp.log(sigma) / 4,
    )


def _edm(r: Rates, sigma_data):
    sigma = r.sigma / r.alpha
    c = scalings(sigma, sigma_data)
    return sigma**2 / (sigma**2 + sigma_data**2) / c.out, -c.skip * sigma / c.out


KINDS: dict[str, Callable[[Rates, Any], tuple[Any, Any]]] = {
    "noise": lambda r, _: (0.0, 1.0),
    "data": lambda r, _: (1.0, 0.0),
    "v": lambda r, _: (
        -r.sigma / jnp.hypot(r.alpha, r.sigma),
        r.alpha / jnp.hypot(r.alpha, r.sigma),
    ),
    "score": lambda r, _: (0.0, -1 / r.sigma),
    "velocity": lambda r, _: (r.alpha_rate, r.sigma_rate),
    "edm": _edm,
}
"""The coefficients (a, b) of F = a x_0 + b ε for each kind, from α, σ, α′, σ′ and the data's standard deviation.

noise ε (Ho et al. 2020) · data x_0 · v = (α ε − σ x_0)/√(α² + σ²) (Salimans & Ho 2022, appendix D, there α² + σ² = 1) ·
score −ε/σ (Song et al. 2021, eq. 7) · velocity α′ x_0 + σ′ ε (Lipman et al. 2023) · EDM's F (Karras et al. 2022, eq.
8).
"""

INPUTS = ("raw", "scaled", "index", "zero_index")


def levels_of(kind: str, schedule: Schedule, t: Scalar) -> Rates:
    """α and σ, and where the kind is "velocity" their derivatives, which may diverge where α = 0; None otherwise."""
    if kind == "velocity":
        return schedules.rates(schedule, t)
    t = as_time(t)
    return Rates(schedule.alpha(t), schedule.sigma(t), None, None)


@one_program
def noise_input(schedule: Schedule, t: Scalar) -> Array:
    """c_noise = −λ/8 = ¼ log σ/α, what a network with scaled inputs is told of the time; shape ()."""
    return -schedules.log_snr(schedules.check(schedule), t) / 8


@one_program
def input_scalings(
    schedule: Schedule, t: Scalar, sigma_data: Scalar
) -> tuple[Array, Array]:
    """c_in = 1/√(α² σ_data² + σ²), which gives a network inputs of unit variance, and `noise_input`; each ().

    sigma_data: (), the data's standard deviation. Karras et al. 2022, Table 1.
    """
    schedules.check(schedule)
    return 1 / jnp.hypot(
        schedule.alpha(t) * sigma_data, schedule.sigma(t)
    ), noise_input(schedule, t)


@pytree
class NetworkDenoiser:
    """D(x, t) from a network F of a given kind. See `denoiser`."""

    schedule: Any
    net: Any
    sigma_data: Scalar
    kind: str = static_field()
    inputs: str = static_field()
    coupled: bool = static_field(default=False)

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """E[x_0 | x_t = x], shape of x."""
        output = self.predict(x, t, *condition)
        if self.kind == "data":  # whatever α and σ are
            return output.astype(checks.promoted(output.dtype, jnp.float32))
        return _denoised(self.schedule, self.kind, self.sigma_data, x, t, output)

    def predict(self, x: Array, t: Scalar, *condition: Any, **net_kwargs: Any) -> Array:
        """F: the network's own output at (x, t), its inputs as it wants them; shape of x."""
        checks.one_of_shapes("t", t, [()])
        raw = self.inputs == "raw"
        inputs = (
            (x, t)
            if raw
            else _network_inputs(self.schedule, self.inputs, self.sigma_data, x, t)
        )
        output = self.net(*inputs, *condition, **net_kwargs)
        if jnp.shape(output) != jnp.shape(x):
            raise ValueError(
                f"net must return its example's shape {jnp.shape(x)}, got {jnp.shape(output)}"
            )
        return output

    def target(self, x0: Array, noise: Array, t: Scalar) -> Array:
        """F's regression target a x_0 + b ε, shape of x0."""
        a, b, _ = self._coefficients(t)
        return a * x0 + b * noise

    def output_scale(self, t: Scalar) -> Array:
        """c(t) with D − x_0 = c (F − target): |σ / (aσ − bα)|, shape ()."""
        a, b, r = self._coefficients(t)
        return jnp.abs(r.sigma / (a * r.sigma - b * r.alpha))

    def _coefficients(self, t):
        r = levels_of(self.kind, self.schedule, t)
        return *KINDS[self.kind](r, self.sigma_data), r


@one_program
def _network_inputs(schedule, inputs, sigma_data, x, t):
    if inputs == "scaled":
        c_in, c_noise = input_scalings(schedule, t, sigma_data)
        return c_in * x, c_noise
    return x, schedules.index_of_time(schedule, t) - (inputs == "zero_index")


@one_program
def _denoised(schedule, kind, sigma_data, x, t, output):
    """x_0 = (σ F − b x)/(aσ − bα)."""
    r = levels_of(kind, schedule, t)
    a, b = KINDS[kind](r, sigma_data)
    gap = a * r.sigma - b * r.alpha
    return (r.sigma / gap) * output - (b / gap) * x


@one_program
def _as_kind(schedule, kind, x, t, data):
    """a D + b (x − α D)/σ."""
    r = levels_of(kind, schedule, t)
    a, b = KINDS[kind](r, None)
    return a * data + b * (x - r.alpha * data) / r.sigma


def denoiser(
    schedule: Schedule,
    net: Callable,
    kind: str,
    *,
    sigma_data: Scalar = 0.5,
    inputs: str = "raw",
    coupled: bool = False,
) -> NetworkDenoiser:
    """The denoiser (x, t) -> E[x_0 | x_t = x] of a network that predicts `kind`.

    Args:
      schedule: A schedule. Where α(t_max) = 0 (zero terminal SNR) the kinds "data", "v" and "velocity" serve.
      net: F(x, t) -> array of x's shape, for one example x and a scalar t: a function, `functools.partial(model.apply,
        params)`, an NNX or Equinox module. Further arguments (a condition) are passed on. Its arrays may change
        between calls and are never part of a compiled program, see `types.as_pytree_callable`.
      kind: One of `KINDS`.
      sigma_data: The data's standard deviation, shape (), used by "edm" and by scaled inputs.
      inputs: What net is called with. "raw": (x, t). "scaled": (c_in x, c_noise), inputs of unit variance and c_noise =
        −λ/8; "edm" is always scaled. "index": (x, i) with the index i = 1 … T of a chain as an int32, exact at the
        chain's times and the nearest one between; "zero_index": i − 1 = 0 … T − 1, the timesteps of most DDPM code.
      coupled: Whether the noise that net was fitted to depended on the data (optimal transport, reflow), see
        `check_independent`.

    Returns:
      The denoiser, a pytree: new parameters do not retrace.

    Raises:
      ValueError: For an unknown kind or inputs, sigma_data ≤ 0, or a kind or scaled inputs without value where α = 0.
      TypeError: For a net that cannot be called, or index inputs on a schedule that is no chain.

    Example:
      >>> import functools
      >>> def net(params, x, i):  # of integer timesteps 0 … 999
      ...     return params["w"] * x + params["of_step"][i]
      >>> params = {"w": jnp.ones(()), "of_step": jnp.zeros(1000)}
      >>> chain = dj.schedules.from_betas(dj.ddpm.linear_betas(1000))
      >>> denoiser = dj.predictions.denoiser(chain, functools.partial(net, params), "noise", inputs="zero_index")
      >>> jax.jit(denoiser)(jnp.ones(2), 0.5).shape
      (2,)
    """
    schedules.check(schedule)
    checks.callable_("net", net, "net(x, t)")
    checks.choice("kind", kind, KINDS)
    checks.choice("inputs", inputs, INPUTS)
    sigma_data = checks.positive("sigma_data", sigma_data)
    inputs = "scaled" if kind == "edm" else inputs
    if inputs.endswith("index") and not isinstance(schedule, Indexed):
        made = "schedules.from_betas or schedules.from_sigmas"
        raise TypeError(
            f"schedule must be made by {made} for inputs={inputs!r}, got {type(schedule).__name__}"
        )
    infinite = not checks.is_traced(schedule) and not schedules.is_finite(schedule)
    if infinite and (inputs == "scaled" or kind in ("noise", "score")):
        raise ValueError(
            f"schedule must have α(t_max) > 0 for kind {kind!r} with {inputs} inputs, but α = 0 at "
            f"t_max={schedule.t_max}: lower t_max, or use raw or index inputs with kind 'data', 'velocity' or 'v'"
        )
    coupled = checks.boolean("coupled", coupled)
    return NetworkDenoiser(
        as_pytree(schedule),
        as_pytree_callable(net),
        sigma_data,
        kind=kind,
        inputs=inputs,
        coupled=coupled,
    )


def is_coupled(denoiser: Denoiser) -> bool:
    """Whether `denoiser`, or one among its children, is marked as fitted to noise that depends on the data.

    A denoiser says so by `coupled = True`. What a plain function closes over is not seen.
    """

    def marked(node):
        return getattr(node, "coupled", False) is True

    if not callable(denoiser):
        return marked(denoiser)
    return marked(denoiser) or any(
        map(marked, jax.tree.leaves(as_pytree_callable(denoiser), is_leaf=marked))
    )


def check_independent(purpose: str, denoiser: Denoiser) -> None:
    """Refuse a coupled denoiser for what needs noise independent of x_0; purpose names it.

    With ε coupled to x_0, D = E[x_0 | x_t] and the velocity α′D + σ′ε̂ still belong to the distribution of x_t, so that
    deterministic solvers, `encode` and `log_prob` hold. Tweedie's formula does not: (αD − x)/σ² is not ∇log p_t, and
    neither a stochastic solver nor guidance by a score has the distribution that it claims. Raises TypeError.
    """
    if is_coupled(denoiser):
        raise TypeError(
            f"{purpose} needs a denoiser fitted to noise that is independent of the data, got one marked coupled: its "
            "score is not (α D − x)/σ²; use a deterministic solver, such as heun()"
        )


@pytree
class Categorical:
    """x̂_0 of lattice data as the mean of a softmax over its levels. See `categorical`."""

    schedule: Any
    net: Any
    levels: Any  # (K,)

    def __call__(
        self, x: Array, t: Scalar, *condition: Any, **net_kwargs: Any
    ) -> Array:
        """Σ_k c_k softmax_k(ℓ_k + net_k), shape of x."""
        evidence, logits = self._logits(x, t, *condition, **net_kwargs)
        return _level_moments(evidence, logits, self.levels)[0]

    def probabilities(
        self, x: Array, t: Scalar, *condition: Any, **net_kwargs: Any
    ) -> Array:
        """softmax_k(ℓ_k + net_k), (*x.shape, K): the distribution of each entry of x_0 given x_t."""
        return _level_probabilities(*self._logits(x, t, *condition, **net_kwargs))

    def moments(self, x: Array, t: Scalar, *condition: Any) -> tuple[Array, Array]:
        """Mean and variance of each entry of x_0 given x_t, shapes of x."""
        return _level_moments(*self._logits(x, t, *condition), self.levels)

    def _logits(self, x, t, *condition, **net_kwargs):
        features, evidence, c_noise = _level_features(self.schedule, self.levels, x, t)
        return evidence, self.net(features, c_noise, *condition, **net_kwargs)


@one_program
def _level_features(schedule, levels, x, t):
    """(what the network is given (*shape[:-1], C K), the evidence (*shape, K), c_noise)."""
    count = levels.shape[0]
    evidence = level_evidence(schedule, x, t, levels)
    features = (count * jnp.exp(evidence) - 1) / math.sqrt(
        count - 1
    )  # unit variance where one level is certain
    merged = (*x.shape[:-1], -1) if x.ndim else (-1,)
    return features.reshape(merged), evidence, noise_input(schedule, t)


@one_program
def _level_probabilities(evidence, logits):
    return jax.nn.softmax(evidence + logits.reshape(evidence.shape))


@one_program
def level_evidence(schedule: Schedule, x: Array, t: Scalar, levels: Array) -> Array:
    """log softmax_k(−(x − α c_k)²/2σ²): what each entry of x_t alone says of its level; (*x.shape, K)."""
    x, levels = checks.real_array("x", x), checks.real_array("levels", levels)
    alpha, sigma = schedules.check(schedule).alpha(t), schedule.sigma(t)
    return jax.nn.log_softmax(-0.5 * ((x[..., None] - alpha * levels) / sigma) ** 2)


def categorical(
    schedule: Schedule, net: Callable, levels: ArrayLike
) -> NetworkDenoiser:
    """The denoiser of data whose entries take K known levels c_k: D = Σ_k c_k softmax_k(ℓ_k + net_k).

    ℓ_k = −(x − α c_k)²/2σ² is the entry's own evidence, so that net adds only what the other entries tell: with logits
    of 0 D is exact for independent uniform entries, with logits log p_k for independent entries of probabilities p_k,
    and rounding at little noise is exact whatever the network says. A prediction of kind "data".

    net: (features, c_noise) -> logits, both (*shape[:-1], C K) for x of shape (*shape[:-1], C): features are the K
    probabilities e^ℓ of each entry, shifted and scaled to unit variance, c_noise = −λ/8. levels: (K,), increasing, K ≥
    2. Raises ValueError otherwise.
    """
    schedules.check(schedule)
    checks.callable_("net", net, "net(features, c_noise)")
    return denoiser(
        schedule,
        Categorical(as_pytree(schedule), as_pytree_callable(net), check_levels(levels)),
        "data",
    )


@pytree
class Moments:
    """(x, t) -> (D, Var) of a softmax over levels. See `moments`."""

    categorical: Any

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> tuple[Array, Array]:
        """E[x_0 | x_t = x] and the variance of each entry, shapes of x."""
        return self.categorical.moments(x, t, *condition)


@one_program
def _level_moments(evidence, logits, levels):
    return level_moments(evidence + logits.reshape(evidence.shape), levels)


def moments(denoiser: NetworkDenoiser) -> Moments:
    """(x, t) -> (E[x_0 | x_t = x], Var[x_0 | x_t = x] of each entry), one network call, of a `categorical` denoiser.

    The pair that `ddpm`'s variance "optimal" asks for. A squared error trains the softmax's mean alone; its variance is
    trained by `ddpm.bound_loss` with that variance. Raises TypeError for a denoiser of another kind.
    """
    net = getattr(denoiser, "net", None)
    if not isinstance(net, Categorical):
        raise TypeError(
            f"denoiser must be made by predictions.categorical, got {type(denoiser).__name__}"
        )
    return Moments(net)


@pytree
class TweedieVariance:
    """(x, t) -> (σ²/α) ∂D_i/∂x_i. See `variance`."""

    schedule: Any
    denoiser: Any

    @one_program
    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """Var(x_0 | x_t = x) of each entry, shape of x."""
        flat = lambda y: jnp.ravel(self.denoiser(y.reshape(x.shape), t, *condition))
        slopes = jnp.diagonal(jax.jacfwd(flat)(jnp.ravel(x)))  # (D,)
        return (self.schedule.sigma(t) ** 2 / self.schedule.alpha(t) * slopes).reshape(
            x.shape
        )


def variance(schedule: Schedule, denoiser: Denoiser) -> TweedieVariance:
    """(x, t) -> Var(x_0 | x_t = x) of each entry, (σ²/α) ∂D_i/∂x_i, shape of x: exact where D is.

    By Tweedie's formula of second order, at the cost of D pushforwards. With `ddpm.paired` the variance "optimal".
    Raises TypeError for what is no schedule or denoiser, or for a denoiser marked `coupled`. Efron 2011; Bao et al.
    2022, Lemma 4.
    """
    schedules.check(schedule)
    checks.callable_("denoiser", denoiser, "denoiser(x, t)")
    check_independent("variance", denoiser)
    return TweedieVariance(as_pytree(schedule), as_pytree_callable(denoiser))


@pytree
class View:
    """a x̂_0 + b ε̂ of a denoiser, for the coefficients of a kind: (x, t) -> array of x's shape."""

    schedule: Any
    denoiser: Any
    kind: str = static_field()

    def __call__(self, x: Array, t: Scalar, *condition: Any) -> Array:
        """a D + b (x − α D)/σ, shape of x."""
        return _as_kind(self.schedule, self.kind, x, t, self.denoiser(x, t, *condition))


def score(schedule: Schedule, denoiser: Denoiser) -> View:
    """∇log p_t = (α D − x)/σ², a view (x, t) -> array. Tweedie's formula: the noise must be independent of x_0, and a
    denoiser marked `coupled` is refused with TypeError.
    """
    check_independent("score", denoiser)
    return _view(schedule, denoiser, "score")


def noise(schedule: Schedule, denoiser: Denoiser) -> View:
    """ε̂ = (x − α D)/σ, a view (x, t) -> array."""
    return _view(schedule, denoiser, "noise")


def v(schedule: Schedule, denoiser: Denoiser) -> View:
    """(α ε̂ − σ D)/√(α² + σ²), a view (x, t) -> array."""
    return _view(schedule, denoiser, "v")


def velocity(schedule: Schedule, denoiser: Denoiser) -> View:
    """α′ D + σ′ ε̂ = dx/dt of the probability flow, a view (x, t) -> array, regular where f and g² are not."""
    return _view(schedule, denoiser, "velocity")


def _view(schedule, denoiser, kind):
    checks.callable_("denoiser", denoiser, "denoiser(x, t)")
    return View(
        as_pytree(schedules.check(schedule)), as_pytree_callable(denoiser), kind=kind
    )
