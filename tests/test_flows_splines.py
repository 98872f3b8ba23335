"""Rational-quadratic splines: knots, slopes, tails, inverses, gradients at the
edge.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import flows


def test_a_spline_goes_through_its_knots_with_its_slopes_and_on_in_straight_lines(x64):
    """y(x_k) = y_k and y′(x_k) = d_k, inside and at both ends.

    Beyond them there are lines of the end slopes. The inverse inverts.
    """
    x_knots, y_knots = (
        jnp.array([-2.0, -1.0, 0.5, 3.0]),
        jnp.array([-1.0, 0.5, 1.0, 4.0]),
    )
    slopes = jnp.array([0.5, 2.0, 0.3, 1.5])
    points = jnp.concatenate(
        [x_knots, jnp.array([-5.0, 5.0]), jnp.linspace(-3.0, 4.0, 50)]
    )

    @jax.jit
    def everything(points):
        y, log_slope = flows.rational_quadratic_spline(points, x_knots, y_knots, slopes)
        derivative = jax.vmap(
            jax.grad(
                lambda x: flows.rational_quadratic_spline(x, x_knots, y_knots, slopes)[
                    0
                ]
            )
        )
        return (
            y,
            log_slope,
            derivative(points),
            *flows.inverse_rational_quadratic_spline(y, x_knots, y_knots, slopes),
        )

    y, log_slope, derivative, back, log_inverse_slope = everything(points)
    np.testing.assert_allclose(y[:4], y_knots, atol=1e-12)
    np.testing.assert_allclose(jnp.exp(log_slope[:4]), slopes, atol=1e-12)
    np.testing.assert_allclose(y[4:6], [-1.0 - 3 * 0.5, 4.0 + 2 * 1.5], atol=1e-12)
    np.testing.assert_allclose(back, points, atol=1e-11)
    np.testing.assert_allclose(log_inverse_slope, -log_slope, atol=1e-10)
    np.testing.assert_allclose(jnp.log(derivative), log_slope, atol=1e-11)


def test_a_spline_is_flowjaxs(x64):
    """Values and log slopes of flowjax 19.1.2's RationalQuadraticSpline, both ways."""
    x_knots = jnp.array(
        [
            -3.0,
            -1.892010878703541,
            -1.332779716324343,
            -0.24099065419070564,
            1.5801353070295896,
            2.3974823996101975,
            3.0,
        ]
    )
    y_knots = jnp.array(
        [
            -3.0,
            -1.4147567785936783,
            -0.6703890951464007,
            -0.16535190965745272,
            1.0229563295590172,
            2.4281217548210616,
            3.0,
        ]
    )
    slopes = jnp.array(
        [
            1.4140326795018074,
            1.0030211110375888,
            0.6666104720093916,
            1.0964785898030402,
            1.386100050768655,
            0.8254997685793289,
            0.7234590588899813,
        ]
    )
    points = jnp.array([-2.5, -1.0, 0.1, 0.9, 2.2, 2.99])
    results = [
        *flows.rational_quadratic_spline(points, x_knots, y_knots, slopes),
        *flows.inverse_rational_quadratic_spline(points, x_knots, y_knots, slopes),
    ]
    theirs = [
        [-2.2299856285213386, -0.5250407820057471, 0.10573973990764635,
         0.4911318654938056, 2.191522767416674, 2.992684003127836],
        [0.4517054624089659, -1.1276348285862556, -0.514227693059032,
         -0.7021095942577649, 0.4506177728771562, -0.3014904474926117],
        [-2.6705087794753024, -1.60401939172546, 0.09045758457379538,
         1.480227346095006, 2.2054356290035417, 2.986385836598562],
        [-0.45967049288243694, -0.4869875805617452, 0.5024060491352778,
         -0.09048188933105752, -0.4381424716962926, 0.29363197488683185],
    ]  # fmt: skip
    np.testing.assert_allclose(results, theirs, rtol=0, atol=1e-14)


def test_a_steep_spline_inverts_to_rounding():
    """x of the same y in float32 and float64 differ by a few roundings.

    These are of the numbers x is made of, whose size is 1 and dx/dy. The
    derivative of the log slope by ξ is at most of the order of the steepest
    slope, and the log slope is off by as many roundings times that.
    """
    knots, ys = [-1.0, 0.0, 1.0], np.linspace(-0.999, 0.999, 2001, dtype=np.float32)
    eps, inverse = (
        np.finfo(np.float32).eps,
        jax.jit(flows.inverse_rational_quadratic_spline),
    )
    for steep in (1.0, 30.0, 1e4, 1e6):
        for slopes in (
            [1.0, steep, 1.0],
            [steep, 1.0, steep],
            [steep, 1 / steep, steep],
        ):
            with jax.enable_x64(True):
                exact = list(
                    map(
                        np.asarray,
                        inverse(
                            np.float64(ys), *map(np.float64, (knots, knots, slopes))
                        ),
                    )
                )
            x, log_slope = inverse(ys, *map(np.float32, (knots, knots, slopes)))
            assert np.all(np.abs(x - exact[0]) <= 8 * eps * (1 + np.exp(exact[1])))
            assert np.all(np.abs(log_slope - exact[1]) <= 8 * eps * (10 + steep))


def test_the_inverse_near_a_flat_corner_keeps_its_digits():
    """The log slope of the inverse is exact towards a knot of small slope.

    From either side, the distance to the knot is that of y, which is exact
    there. So the log slope, a sum of three logarithms below 16, is right to 8
    roundings of 10, although the slope varies more than a hundredfold.
    """
    distance = np.geomspace(1e-7, 0.5, 2000)
    ys = np.float32(np.concatenate([1 - distance, distance - 1]))
    inverse = jax.jit(flows.inverse_rational_quadratic_spline)
    for flat, steep in ((1e-6, 1.0), (1e-4, 1e3), (1e-3, 30.0)):
        rows = (
            np.float32([-1, 0, 1]),
            np.float32([-1, 0, 1]),
            np.float32([flat, steep, flat]),
        )
        with jax.enable_x64(True):
            exact = np.asarray(
                inverse(
                    ys.astype(np.float64), *(row.astype(np.float64) for row in rows)
                )[1]
            )
        log_slope = inverse(ys, *rows)[1]
        assert np.ptp(exact) > np.log(100)
        np.testing.assert_allclose(
            log_slope, exact, rtol=0, atol=8 * 10 * np.finfo(np.float32).eps
        )


def test_spline_gradients_are_finite_and_right_at_the_edge_and_beyond():
    """d/dx is the slope and d/dθ is finite, in float32, both ways.

    At ±B, at a knot and far out, for extreme parameters too. At and beyond the
    edge the map is the identity: slope 1, log slope 0, and no parameter moves
    it.
    """
    scalar_map = flows.rational_quadratic(4, 2.0)
    points = jnp.array(
        [
            -1e6,
            -2.0,
            np.nextafter(np.float32(-2), 0),
            -1.0,
            0.0,
            1.0,
            np.nextafter(np.float32(2), 0),
            2.0,
            3.0,
        ]
    )

    @jax.jit
    def derivatives(parameters):
        results = {}
        for name, method in (
            ("forward", scalar_map.forward),
            ("inverse", scalar_map.inverse),
        ):
            for i, part in enumerate(("value", "log_slope")):
                by_both = jax.grad(
                    lambda x, p, method=method, i=i: method(x, p)[i], argnums=(0, 1)
                )
                results[f"{name} {part}"] = jax.vmap(by_both, (0, None))(
                    points, parameters
                )
            results[name] = jax.vmap(method, (0, None))(points, parameters)
        return results

    for size in (0.0, 1.0, 30.0):
        results = derivatives(
            size * jax.random.normal(jax.random.key(0), (scalar_map.count,))
        )
        for leaf in jax.tree.leaves(results):
            assert np.all(np.isfinite(leaf))
        for name in ("forward", "inverse"):
            by_x, by_parameters = results[f"{name} value"]
            np.testing.assert_allclose(
                by_x, np.exp(results[name][1]), rtol=3e-3 if size > 1 else 1e-4
            )
            outside = np.abs(points) >= 2
            np.testing.assert_array_equal(results[name][0][outside], points[outside])
            np.testing.assert_array_equal(by_x[outside], 1)
            np.testing.assert_array_equal(by_parameters[outside], 0)


def exact_span(method, inverse, values, parameters, slack):
    """Least and greatest result and log slope of a method for values within ±slack.

    In float64, both of shape (N, 2). The log slopes are sampled evenly along
    the values and along the results, since one may be steep in the other.
    """
    parameters = np.repeat(parameters[:, None], 33, 1)
    results, log_slopes = method(
        values[:, None] + slack * np.linspace(-1, 1, 33), parameters
    )
    again = -np.asarray(
        inverse(np.linspace(results[:, 0], results[:, -1], 33, axis=1), parameters)[1]
    )
    log_slopes = np.concatenate([log_slopes, again], 1)
    return np.asarray(results)[:, [0, -1]], np.stack(
        [log_slopes.min(1), log_slopes.max(1)], 1
    )


@pytest.mark.slow
def test_a_spline_of_large_parameters_is_exact_for_a_value_a_few_roundings_away():
    """Both directions in float32 lie between the exact map's values at y ± τ, ± τ.

    Here τ is the rounding of a knot. A knot is a sum of K = 8 shares of the
    range 2B, off by at most τ = 8 K roundings of B in all. That moves the log
    of a bin's mean slope by 2τ over its least width, and the log slope by
    three times as much. A bin in which the map is nearly flat has no better
    inverse in float32: the exact one at y ± τ spans as much.
    """
    bound, floor, bins = 5.0, 1e-3, 8
    scalar_map = flows.rational_quadratic(bins, bound, floor)
    draws = np.random.default_rng(0)
    sizes = np.repeat([1, 2, 4, 8, 20], 2000)
    parameters = (
        sizes[:, None] * draws.standard_normal((len(sizes), scalar_map.count))
    ).astype(np.float32)
    values = draws.uniform(-bound, bound, len(sizes)).astype(np.float32)

    @jax.jit
    def both(values, parameters):
        y, log_slope = scalar_map.forward(values, parameters)
        total = lambda v, p: sum(map(jnp.sum, scalar_map.inverse(v, p)))
        back = scalar_map.inverse(y, parameters)
        return (
            (y, log_slope),
            scalar_map.inverse(values, parameters),
            back,
            jax.grad(total, (0, 1))(y, parameters),
        )

    forward, inverse, back, gradients = jax.tree.map(
        np.asarray, both(values, parameters)
    )
    slack = 8 * bins * np.finfo(np.float32).eps * bound
    slope_slack = 6 * slack / (2 * bound * floor)
    with jax.enable_x64(True):
        exact = [
            jax.jit(lambda v, p, m=m: m(v, p))
            for m in (scalar_map.forward, scalar_map.inverse)
        ]
        values, y, parameters = (
            a.astype(np.float64) for a in (values, forward[0], parameters)
        )
        spans = [exact_span(*exact, values, parameters, slack)]
        spans += [exact_span(*exact[::-1], v, parameters, slack) for v in (values, y)]
    for results, (near, log_slopes) in zip(
        (forward, inverse, back), spans, strict=True
    ):
        assert np.all(
            (results[0] >= near[:, 0] - slack) & (results[0] <= near[:, 1] + slack)
        )
        assert np.all(results[1] >= log_slopes[:, 0] - slope_slack)
        assert np.all(results[1] <= log_slopes[:, 1] + slope_slack)
    span = np.ptp(
        spans[2][1], axis=1
    )  # how far the log slope differs over the x that y may stand for
    assert np.all(np.abs(forward[1] + back[1]) <= span + 2 * slope_slack)
    assert np.all(np.abs(back[0] - values) <= np.ptp(spans[2][0], axis=1) + slack)
    assert all(np.all(np.isfinite(leaf)) for leaf in gradients)


def test_the_slopes_of_a_spline_lie_between_their_bounds(x64):
    """Slopes within a bin, and of a spline with a ceiling.

    In a bin of mean slope s between knots of slopes d and e they are at least
    min(d, e, s, s²/max(d, e)) and at most max(d, e, 2s). Hence with a ceiling
    C, for parameters of any size, they lie in [min(floor, m²/C), max(C, 2/m)],
    with m the least mean slope. Alternating parameters come within a factor of
    3 of both ends.
    """
    draws = np.random.default_rng(0)
    d, s, e = np.exp(draws.uniform(-9, 9, (3, 1000)))
    near = np.geomspace(1e-12, 0.5, 100)
    xi = np.concatenate([[0.0], near, 1 - near[::-1], [1.0]])
    x = np.broadcast_to(xi, (len(s), len(xi)))
    knots = [np.stack([np.zeros_like(s), s], -1), np.stack([d, e], -1)]
    wide = [np.broadcast_to(row[:, None], (*x.shape, 2)) for row in knots]
    slopes = np.exp(
        jax.jit(flows.rational_quadratic_spline)(x, np.array([0.0, 1.0]), *wide)[1]
    )
    steep = np.maximum(d, e)
    least, greatest = (
        np.minimum(np.minimum(d, e), np.minimum(s, s**2 / steep)),
        np.maximum(steep, 2 * s),
    )
    assert np.all(slopes >= least[:, None] * (1 - 1e-9)) and np.all(
        slopes <= greatest[:, None] * (1 + 1e-9)
    )

    bins, floor, ceiling = 8, 0.02, 10.0
    scalar_map = flows.rational_quadratic(bins, 5.0, floor, ceiling)
    sizes = np.repeat([0.0, 1.0, 4.0, 50.0], 20)
    parameters = sizes[:, None] * draws.standard_normal((len(sizes), scalar_map.count))
    # One wide and flat bin between steep knots, one narrow and high between
    # flat.
    one = 50.0 * np.eye(bins)[bins // 2]
    alternating = [
        np.concatenate([*pair, np.full(bins - 1, end)])
        for pair, end in (((one, -one), 50.0), ((-one, one), -50.0))
    ]
    x = np.linspace(-5, 5, 2001)
    results = jax.jit(
        jax.vmap(
            lambda p: scalar_map.forward(
                x, jnp.broadcast_to(p, (len(x), scalar_map.count))
            )[1]
        )
    )
    slopes = np.exp(results(np.concatenate([parameters, alternating])))
    m = floor / (1 - (bins - 1) * floor)
    least, greatest = min(floor, m**2 / ceiling), max(ceiling, 2 / m)
    assert least <= slopes.min() < 3 * least and greatest / 3 < slopes.max() <= greatest
    np.testing.assert_allclose(slopes[:20], 1, rtol=1e-12)


HALF, BOUND = 10, 5.0
TABLE = np.random.default_rng(1).standard_normal((4, 2, HALF, 23)).astype(np.float32)
"""Parameters of 4 layers, by the sign of the entry that is kept."""


def coupling_layers(size, **bounds):
    """Four coupling layers of 20 entries.

    Parameters depend on signs of the kept part.
    """
    scalar_map = flows.rational_quadratic(8, BOUND, **bounds)  # of 23 parameters

    def conditioner(layer):
        table = size * TABLE[layer]
        return lambda kept, condition: jnp.where(kept[:, None] > 0, *table).astype(
            kept.dtype
        )

    masks = [flows.half_mask(2 * HALF, swap=i % 2 == 1) for i in range(4)]
    return [
        flows.coupling(conditioner(i), scalar_map, mask) for i, mask in enumerate(masks)
    ]


@pytest.mark.parametrize(
    "bounds", [{}, {"floor": 0.02, "ceiling": 10.0}], ids=["published", "bounded"]
)
def test_a_coupling_comes_back_as_nearly_as_its_slopes_allow(bounds):
    """F⁻¹(F(x)) in float32, and log|det| forward plus inverse.

    Four layers of 20 entries, parameters up to size 20. Each direction of a
    layer is the exact map at an input τ away, give or take τ = 4 ε bound. So
    an entry that layers of slopes s_1, s_2, … move comes back within 2τ [(1 +
    1/s_1) + (1 + 1/s_2)/s_1 + …].

    Its log slopes differ by their variation over that displacement, and by 8
    roundings of their terms, of size 10 at most. The displacement is computed
    as an interval, which monotone maps carry exactly: near a knot first order
    is wrong.

    An example counts where the signs of the kept part come back, because both
    directions have the same parameters then. Nearly all do at size 1. Without
    a ceiling those of size 4 have lost all digits, 1/s_1 … being 1e10, but
    they are finite.
    """
    sizes = np.repeat(np.float32([0.5, 1, 2, 4, 20]), 60)
    xs = np.float32(
        1.5 * np.random.default_rng(0).standard_normal((len(sizes), 2 * HALF))
    )

    def both(size, x):
        layers, states, total = coupling_layers(size, **bounds), [x], 0.0
        for layer in layers:
            x, log_det = layer.forward_and_log_det(x)
            states, total = [*states, x], total + log_det
        back, log_det = flows.chain(*layers).inverse_and_log_det(x)
        return jnp.stack(states), back, total + log_det

    states, back, sums = map(np.asarray, jax.jit(jax.vmap(both))(sizes, xs))
    assert np.all(np.isfinite(back)) and np.all(np.isfinite(sums))
    states, eps = states.astype(np.float64), float(np.finfo(np.float32).eps)
    tau, counts, variation = 4 * eps * BOUND, np.ones(len(xs), bool), np.zeros(len(xs))
    ends = [
        states[:, -1].copy(),
        states[:, -1].copy(),
    ]  # between which each layer's input comes back
    with jax.enable_x64(True):
        scalar_map = flows.rational_quadratic(8, BOUND, **bounds)
        forward, inverse = jax.jit(scalar_map.forward), jax.jit(scalar_map.inverse)
        for i in reversed(range(4)):
            kept, moved = (
                (slice(HALF, None), slice(HALF))
                if i % 2
                else (slice(HALF), slice(HALF, None))
            )
            before, after, positive = (
                states[:, i, moved],
                states[:, i + 1, moved],
                states[:, i, kept] > 0,
            )
            counts &= np.all(
                [np.all((end[:, kept] > 0) == positive, 1) for end in ends], 0
            )
            table = sizes[:, None, None] * np.where(positive[..., None], *TABLE[i])
            parameters = table.astype(np.float64)  # of float32's, exactly
            for sign, end in zip((-1, 1), ends, strict=True):
                y = forward(before + sign * tau, parameters)[0] + (
                    end[:, moved] - after
                )
                end[:, moved] = inverse(y + 2 * sign * tau, parameters)[0] + sign * tau
            way = np.linspace(*(end[:, moved] for end in ends), 65)
            log_slopes = forward(
                way, np.broadcast_to(parameters, (65, *parameters.shape))
            )[1]
            variation += np.ptp(log_slopes, axis=0).sum(1)
    assert np.all(counts[sizes < 1]) and np.mean(counts[sizes == 1]) > 0.95
    assert np.all(((back >= ends[0]) & (back <= ends[1]))[counts])
    assert np.all(
        (np.abs(sums) <= variation + 8 * eps * 10 * states[0, 1:, :HALF].size)[counts]
    )
