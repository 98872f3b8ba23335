"""Markovian hierarchical VAEs: x ← z_1 ← … ← z_L, the bound's terms level by level, and ancestral sampling.

p(x, z_1 … z_L) = p(z_L) p(x | z_1) Π_{l=2}^L p(z_{l−1} | z_l). Kernels are callables that answer with laws: (mean,
log_std) or a `distributions.Gaussian`, or on the generative side anything with log_prob and sample. The kernels of L levels are
a sequence of L callables, for latents of any shapes, or one function of (level, z) with `levels` stated, for latents
of one shape: it is then traced once, however many levels there are. A diffusion is the second kind, with the inference
that `top_down` makes of its marginals and posteriors.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import checks
from ..flows.compiled import call
from ..solvers.requirements import check_example
from ..types import Array, ArrayLike, Key, as_pytree_callable, pytree, static_field
from .conditional import (
    as_distribution,
    as_gaussian,
    as_prior,
    kl,
    log_prob,
    not_finite,
    reparameterised,
)
from .gaussian import DRAWABLE, DRAWABLE_PRIOR, Decoder


class HierarchicalElbo(NamedTuple):
    """A lower bound on log p(x) of one example, in nats: in expectation total ≤ log p(x).

    reconstruction: (), log p(x | z_1). kl: (L,), what each latent costs given the one above: entry l − 1 is level l's,
    the last KL(q(z_L | ·) ‖ p(z_L)).
    """

    reconstruction: Array
    kl: Array

    @property
    def total(self) -> Array:
        """reconstruction − Σ kl, shape ()."""
        return self.reconstruction - jnp.sum(self.kl, -1)


@pytree
class Kernels:
    """The kernels of levels first … last: a tuple, or one function of (level, …)."""

    functions: Any
    first: int = static_field()
    last: int = static_field()

    @property
    def stacked(self) -> bool:
        """Whether one function serves all levels, whose number may then be traced."""
        return not isinstance(self.functions, tuple)

    def __call__(self, level: Any, *arguments: Any) -> Any:
        """What the kernel of a level answers."""
        if self.stacked:
            return self.functions(level, *arguments)
        return self.functions[level - self.first](*arguments)


@pytree
class BottomUp:
    """q(z_1 | x) Π q(z_l | z_{l−1}). See `bottom_up`."""

    kernels: Any

    @property
    def levels(self) -> int:
        """L."""
        return self.kernels.last


@pytree
class TopDown:
    """q(z_L | x) Π q(z_{l−1} | z_l, x). See `top_down`."""

    top: Any
    posteriors: Any
    marginals: Any

    @property
    def levels(self) -> int:
        """L."""
        return self.posteriors.last


def bottom_up(
    kernels: Sequence[Callable] | Callable, levels: int | None = None
) -> BottomUp:
    """The inference q(z_1 | x) Π_{l=2}^L q(z_l | z_{l−1}), drawn upwards.

    kernels: L callables z_{l−1} -> law of z_l, z_0 = x; or one function (l, z_{l−1}) -> law with levels=L. A level's
    term of the bound is then log q(z_l | z_{l−1}) − log p(z_l | z_{l+1}) at a draw, whose sum alone is surely positive
    in expectation; only the top level's is a KL in closed form. Raises TypeError and ValueError for kernels that are
    neither and levels that do not fit.
    """
    return BottomUp(_kernels("kernels", kernels, 1, levels))


def top_down(
    top: Callable,
    posteriors: Sequence[Callable] | Callable,
    marginals: Sequence[Callable] | Callable | None = None,
    levels: int | None = None,
) -> TopDown:
    """The inference q(z_L | x) Π_{l=2}^L q(z_{l−1} | z_l, x), by which every term of the bound is a KL.

    top: x -> law of z_L. posteriors: L − 1 callables (z_l, x) -> law of z_{l−1}, for l = 2 … L, or one function (l,
    z_l, x) with levels=L. marginals: L callables x -> law of z_l, or one function (l, x), where q(z_l | x) is known:
    each term then has a draw of its own, which passes through no other level. Without them the draws go down from the
    top, one joint draw for all terms. Raises TypeError and ValueError as `bottom_up`.
    """
    checks.callable_("top", top, "top(x) -> law")
    posteriors = _kernels("posteriors", posteriors, 2, levels)
    if marginals is not None:
        marginals = _kernels("marginals", marginals, 1, posteriors.last)
    return TopDown(as_pytree_callable(top), posteriors, marginals)


def elbo(
    key: Key,
    inference: BottomUp | TopDown,
    decoder: Decoder,
    generative: Sequence[Callable] | Callable,
    x: ArrayLike,
    prior: Any = None,
) -> HierarchicalElbo:
    """The bound on log p(x) of one example, level by level.

    By `top_down` inference: E log p(x | z_1) − Σ_{l=2}^L E KL(q(z_{l−1} | z_l, x) ‖ p(z_{l−1} | z_l)) − KL(q(z_L | x) ‖
    p(z_L)), every expectation by one draw of z_l ~ q(z_l | x), a function of (key, l). By `bottom_up` inference see
    there. decoder: z_1 -> law of x. generative: L − 1 callables z_l -> law of z_{l−1}, for l = 2 … L, or one function
    (l, z_l). prior: the law of z_L, anything with log_prob; None is N(0, I). A KL between Gaussians is exact, another
    by a draw. Raises ValueError for levels or shapes that do not fit and concrete NaN or infinity, naming the kernel.
    Luo 2022, eq. 23–24; Sohl-Dickstein et al. 2015, eq. 14; Ho et al. 2020, eq. 5.
    """
    checks.key("key", key)
    checks.callable_("decoder", decoder, "decoder(z) -> law")
    if not isinstance(inference, BottomUp | TopDown):
        raise TypeError(
            f"inference must be made by bottom_up or top_down, got {inference!r}"
        )
    generative = _kernels("generative", generative, 2, inference.levels)
    if prior is not None:
        checks.has_methods("prior", prior, "log_prob(z)")
    x = check_example("x", x)
    return call(
        _elbo,
        key,
        inference,
        as_pytree_callable(decoder),
        generative,
        x,
        prior,
        faulty=not_finite,
    )


def _elbo(key, inference, decoder, generative, x, prior):
    terms = _bottom_up_terms if isinstance(inference, BottomUp) else _top_down_terms
    z, below, top = terms(key, inference, generative, x, prior)
    return HierarchicalElbo(
        log_prob("decoder", decoder(z), x), jnp.concatenate([below, top[None]])
    )


def decode(
    key: Key,
    decoder: Decoder,
    generative: Sequence[Callable] | Callable,
    z: ArrayLike,
    level: int,
    mean: bool = False,
) -> Array:
    """x drawn from a latent z of a level downwards: z_{l−1} ~ p(z_{l−1} | z_l), x ~ p(x | z_1); a function of the key.

    generative: kernels as in `elbo`, of `level` or more levels. mean=True takes each law's mean and draws nothing.
    Raises ValueError for a level without kernels or shapes that do not fit, TypeError for a law without sample or mean.
    """
    checks.key("key", key)
    checks.callable_("decoder", decoder, "decoder(z) -> law")
    level, mean = (
        checks.integer("level", level, minimum=1),
        checks.boolean("mean", mean),
    )
    kernels, z = (
        _kernels("generative", generative, 2, level if callable(generative) else None),
        check_example("z", z),
    )
    if kernels.last < level:
        raise ValueError(
            f"level must be at most {kernels.last}, the levels of generative, got {level}"
        )
    return call(
        _decode,
        key,
        as_pytree_callable(decoder),
        kernels,
        z,
        faulty=not_finite,
        level=level,
        mean=mean,
    )


def _decode(key, decoder, kernels, z, level, mean):
    def answer(name, law, l):
        if mean:
            return checks.has_methods(name, law, "mean()").mean()
        checks.has_methods(name, law, DRAWABLE)
        return law.sample(jax.random.fold_in(key, l))

    def below(l, z):
        name = f"generative{_at(l)}"
        return answer(
            f"{name}'s output",
            as_distribution(name, kernels(l, z), z.shape if kernels.stacked else None),
            l - 1,
        )

    if kernels.stacked:
        z = jax.lax.fori_loop(0, level - 1, lambda i, z: below(level - i, z), z)
    else:
        for l in range(level, 1, -1):
            z = below(l, z)
    return answer("decoder's output", decoder(z), 0)


def sample(
    key: Key,
    decoder: Decoder,
    generative: Sequence[Callable] | Callable,
    prior: Any,
    levels: int | None = None,
) -> Array:
    """One draw of x, ancestrally from z_L ~ prior, a function of the key alone.

    generative: kernels as in `elbo`; levels: L, to be stated where they are one function. prior: anything with
    sample(key), as `distributions.standard_normal(shape)`.
    """
    checks.key("key", key)
    levels = _kernels("generative", generative, 2, levels).last
    checks.has_methods("prior", prior, DRAWABLE_PRIOR)
    z = prior.sample(jax.random.fold_in(key, levels))
    return decode(key, decoder, generative, z, levels)


# --------------------------------------------------------------------------------------------------------------- terms


def _top_down_terms(key, inference, generative, x, prior):
    """(z_1, the terms of the levels below the top (L − 1,), the top's)."""
    levels, posteriors, marginals = (
        inference.levels,
        inference.posteriors,
        inference.marginals,
    )
    zs: Any = None
    q_top = as_gaussian("top", inference.top(x))
    stacked = (
        posteriors.stacked
        and generative.stacked
        and (marginals is None or marginals.stacked)
    )

    def marginal(level):
        shape = q_top.loc.shape if stacked or level == levels else None
        return reparameterised(
            key,
            level,
            as_gaussian(f"marginals{_at(level)}", inference.marginals(level, x), shape),
        )

    if marginals is None:
        zs = _descend(key, posteriors, q_top, x)
    elif not stacked:
        zs = [marginal(level) for level in range(1, levels + 1)]

    def state(level):
        return marginal(level) if zs is None else zs[level - 1]

    def term(level):
        z, below = state(level), q_top.loc.shape if stacked else zs[level - 2].shape
        q = as_gaussian(f"posteriors{_at(level)}", posteriors(level, z, x), below)
        p = as_distribution(
            f"generative{_at(level)}", generative(level, z), q.loc.shape
        )
        return kl(
            f"generative{_at(level)}", q, p, reparameterised(key, levels + level, q)
        )

    top = kl("prior", q_top, as_prior(prior, q_top.loc.shape), state(levels))
    return state(1), _for_levels(term, levels, stacked), top


def _descend(key, posteriors, q_top, x):
    """z_1 … z_L drawn from the top down, an array or a list."""
    levels, z = posteriors.last, reparameterised(key, posteriors.last, q_top)

    def below(level, z):
        name = f"posteriors{_at(level)}"
        shape = z.shape if posteriors.stacked else None
        return reparameterised(
            key, level - 1, as_gaussian(name, posteriors(level, z, x), shape)
        )

    if posteriors.stacked:
        _, zs = jax.lax.scan(
            lambda z, level: (below(level, z),) * 2, z, jnp.arange(levels, 1, -1)
        )
        return jnp.concatenate([zs[::-1], z[None]])
    zs = [z]
    for level in range(levels, 1, -1):
        zs.append(below(level, zs[-1]))
    return zs[::-1]


def _bottom_up_terms(key, inference, generative, x, prior):
    """As `_top_down_terms`, the terms below the top by the same draws."""
    levels, kernels = inference.levels, inference.kernels
    zs, log_q, q_top = _ascend(key, kernels, x)

    def term(level):
        """log q(z_{l−1} | z_{l−2}) − log p(z_{l−1} | z_l)."""
        name, z = f"generative{_at(level)}", zs[level - 2]
        return log_q[level - 2] - log_prob(
            name, as_distribution(name, generative(level, zs[level - 1]), z.shape), z
        )

    top = kl("prior", q_top, as_prior(prior, q_top.loc.shape), zs[levels - 1])
    return zs[0], _for_levels(term, levels, kernels.stacked and generative.stacked), top


def _ascend(key, kernels, x):
    """(z_1 … z_L, log q of each given the one below, the law of the last): arrays, or lists."""

    def above(level, z):
        q = as_gaussian(
            f"kernels{_at(level)}",
            kernels(level, z),
            z.shape if kernels.stacked else None,
        )
        z = reparameterised(key, level, q)
        return z, (z, q.log_prob(z), q)

    if kernels.stacked:
        _, (zs, log_q, laws) = jax.lax.scan(
            lambda z, level: above(level, z), x, jnp.arange(1, kernels.last + 1)
        )
        return zs, log_q, jax.tree.map(lambda leaf: leaf[-1], laws)
    z, rows = x, []
    for level in range(1, kernels.last + 1):
        z, row = above(level, z)
        rows.append(row)
    zs, log_q, laws = zip(*rows, strict=True)
    return zs, log_q, laws[-1]


def _for_levels(term, levels, stacked):
    """term(2) … term(L), (L − 1,); one trace for all where stacked."""
    if levels == 1:
        return jnp.zeros((0,))
    if stacked:
        return jax.vmap(term)(jnp.arange(2, levels + 1))
    return jnp.stack([term(level) for level in range(2, levels + 1)])


def _at(level):
    """The level in a kernel's name, where it is a number."""
    return f"[{level}]" if isinstance(level, int) else ""


def _kernels(name, kernels, first, levels):
    """Checked kernels of the levels from `first` on, with their number by their length or as stated."""
    if callable(kernels):
        if levels is None:
            raise ValueError(
                f"levels must be given where {name} is one function of the level"
            )
        return Kernels(
            as_pytree_callable(kernels), first, checks.depth("levels", levels, 1)
        )
    if not isinstance(kernels, tuple | list) or not all(map(callable, kernels)):
        raise TypeError(
            f"{name} must be a sequence of callables, or one function of the level, got {kernels!r}"
        )
    last = len(kernels) + first - 1
    if last < 1:
        raise ValueError(f"{name} must hold at least one kernel, got none")
    if levels is not None and last != levels:
        raise ValueError(
            f"{name} must be {levels - first + 1} kernels for {levels} levels, got {len(kernels)}"
        )
    return Kernels(tuple(map(as_pytree_callable, kernels)), first, last)
