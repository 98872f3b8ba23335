"""Wrong arguments of flows raise errors that name them."""

import jax
import jax.numpy as jnp
import pytest

from diffjax import distributions, flows
from tests.families import assert_raises
from tests.flow_members import KEY, NORMAL, conditioned, coupled

WRONG = {
    "odd squeeze": (
        lambda: flows.squeeze().forward(jnp.zeros((3, 4, 1))),
        ValueError,
        r"x must be \(H, W, C\) with sides divisible by factor=2",
    ),
    "squeeze axes": (
        lambda: flows.squeeze().forward(jnp.zeros((4, 4))),
        ValueError,
        r"x must be \(H, W, C\)",
    ),
    "unsqueeze": (
        lambda: flows.squeeze().inverse(jnp.zeros((2, 2, 3))),
        ValueError,
        "channels divisible by factor²=4",
    ),
    "split of one channel": (
        lambda: flows.multiscale((2, 2, 1), flows.chain(), flows.chain()),
        ValueError,
        "even number of channels",
    ),
    "latents": (
        lambda: flows.multiscale((2,), flows.chain()).forward((jnp.zeros(3),)),
        ValueError,
        "latents must be a tuple",
    ),
    "no permutation": (
        lambda: flows.permutation([0, 2, 2]),
        ValueError,
        "order must be a permutation of 0 … 2",
    ),
    "permuted length": (
        lambda: flows.reversal(3).forward(jnp.zeros(2)),
        ValueError,
        "3 channels on its last axis, got shape",
    ),
    "logit range": (
        lambda: flows.logit().inverse(jnp.array([0.5, 1.2])),
        ValueError,
        r"y must lie in .* got 1.2",
    ),
    "logit NaN": (
        lambda: flows.logit().inverse(jnp.array([jnp.nan])),
        ValueError,
        "y must lie in .* got nan",
    ),
    "image": (
        lambda: flows.tanh().inverse(jnp.array([0.5, -1.0])),
        ValueError,
        r"y must lie in \(-1.0, 1.0\), got -1 in entry 1",
    ),
    "positive image": (
        lambda: flows.positive().inverse(-1.0),
        ValueError,
        r"y must lie in \(0.0, inf\), got -1",
    ),
    "exponential NaN": (
        lambda: flows.exponential().inverse(jnp.nan),
        ValueError,
        r"y must lie in \(0.0, inf\), got nan",
    ),
    "image order": (
        lambda: flows.elementwise(jnp.exp, jnp.log, jnp.abs, image=(1.0, 0.0)),
        ValueError,
        "image must be",
    ),
    "elementwise broadcast": (
        lambda: flows.sinh_arcsinh(jnp.zeros(3)).forward(jnp.zeros(1)),
        ValueError,
        r"parameters\[0\] of shape \(3,\) must be broadcastable",
    ),
    "order": (
        lambda: flows.permutation(3),
        TypeError,
        "order must be a tuple of integers, got 3",
    ),
    "ragged order": (
        lambda: flows.permutation([[0], [1, 2]]),
        TypeError,
        r"order\[0\] must be an integer",
    ),
    "traced order": (
        lambda: jax.jit(lambda key: flows.shuffle(key, 3).forward(jnp.zeros(3)))(KEY),
        TypeError,
        "order must be concrete",
    ),
    "logit bounds": (
        lambda: flows.logit(1.0, 0.0),
        ValueError,
        "upper must be greater than lower",
    ),
    "logit margin": (
        lambda: flows.logit(margin=0.5),
        ValueError,
        "margin must be at least 0 and less than 0.5",
    ),
    "scale": (
        lambda: flows.affine(0.0, -1.0),
        ValueError,
        "scale must be positive, got -1",
    ),
    "shift": (lambda: flows.affine(jnp.nan), ValueError, "shift must be finite"),
    "broadcast": (
        lambda: flows.affine(jnp.zeros(3)).forward(jnp.zeros(2)),
        ValueError,
        "shift of shape .* must be broadcastable",
    ),
    "slope": (lambda: flows.leaky_relu(-1.0), ValueError, "slope must be positive"),
    "reshape": (
        lambda: flows.reshape((4,), (3,)),
        ValueError,
        "target must have the 4 entries",
    ),
    "floor": (
        lambda: flows.lu_linear(2, floor=1.0),
        ValueError,
        r"floor must lie in \(0, 1\), got 1.0",
    ),
    "channels": (
        lambda: flows.lu_linear(2).forward(jnp.zeros(3)),
        ValueError,
        "x must have 2 channels",
    ),
    "no bijector": (
        lambda: flows.chain(jnp.tanh),
        TypeError,
        r"bijectors\[0\] must have forward\(x\) and inverse\(x\)",
    ),
    "a class": (
        lambda: flows.inverse(type(flows.affine(0.0))),
        TypeError,
        r"bijector must have forward\(x\) and inverse\(x\)",
    ),
    "empty stack": (lambda: flows.stack([]), ValueError, "at least one, got none"),
    "stack without parameters": (
        lambda: flows.stack([flows.leaky_relu()] * 2),
        ValueError,
        "bijectors must have parameters to be stacked",
    ),
    "uneven stack": (
        lambda: flows.stack([flows.affine(0.0), flows.tanh()]),
        ValueError,
        r"bijectors\[1\] must have the structure",
    ),
    "uneven leaves": (
        lambda: flows.stack([flows.lu_linear(2), flows.lu_linear(3)]),
        ValueError,
        r"bijectors\[1\] must have the structure and leaves",
    ),
    "batch NaN": (
        lambda: flows.initialise(flows.actnorm(1), jnp.full((2, 1), jnp.nan)),
        ValueError,
        "batch must be finite",
    ),
    "batch of one": (
        lambda: flows.initialise(flows.actnorm(1), jnp.zeros((1, 1))),
        ValueError,
        "N at least 2",
    ),
    "actnorm inside": (
        lambda: flows.initialise(flows.inverse(flows.actnorm(1)), jnp.zeros((2, 1))),
        ValueError,
        "inside inverse",
    ),
    "initialised": (
        lambda: flows.initialise(3, jnp.zeros((2, 1))),
        TypeError,
        "bijector must be a bijector or a flow, got 3",
    ),
    "base": (
        lambda: flows.flow(None, flows.chain()),
        TypeError,
        "base must have log_prob",
    ),
    "data NaN": (
        lambda: flows.flow(NORMAL, flows.chain()).log_prob([0.0, jnp.nan]),
        ValueError,
        "x must be finite, got 1 NaN",
    ),
    "data batch": (
        lambda: flows.flow(NORMAL, flows.affine(0.0)).log_prob(jnp.zeros((5, 2))),
        ValueError,
        r"z must have shape \(2,\), got \(5, 2\)",
    ),
    "temperature": (
        lambda: flows.flow(NORMAL, flows.chain()).sample(jax.random.key(0), -1.0),
        ValueError,
        "temperature must be 0 or more",
    ),
    "dequantiser": (
        lambda: flows.lattice_log_prob(
            KEY, flows.maf(KEY, (2,)), jnp.zeros(2), 1.0, dequantiser=flows.chain()
        ),
        TypeError,
        "dequantiser must have sample_and_log_prob",
    ),
    "lattice flow": (
        lambda: flows.lattice_log_prob(KEY, 3, jnp.zeros(2), 1.0),
        TypeError,
        "flow must have log_prob.*got 3",
    ),
    "lattice class": (
        lambda: flows.lattice_log_prob(KEY, type(NORMAL), jnp.zeros(2), 1.0),
        TypeError,
        "flow must have log_prob",
    ),
    "interpolated": (
        lambda: flows.interpolate(
            flows.chain(), jnp.zeros(2), jnp.ones(2), jnp.array([0.5])
        ),
        TypeError,
        "flow must be made by flows.flow",
    ),
    "no mean": (
        lambda: flows.flow(flows.flow(NORMAL, flows.chain()), flows.chain()).sample(
            jax.random.key(0), 0.5
        ),
        TypeError,
        r"base must have mean\(\)",
    ),
    "knots": (
        lambda: flows.rational_quadratic_spline(
            0.0, [0.0, 2.0, 1.0], [0.0, 1.0, 2.0], [1.0, 1.0, 1.0]
        ),
        ValueError,
        "x_knots must increase, got",
    ),
    "slopes": (
        lambda: flows.rational_quadratic_spline(
            0.0, [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]
        ),
        ValueError,
        "slopes must be positive",
    ),
    "knots apart": (
        lambda: flows.rational_quadratic_spline(0.0, [0.0, 1.0], [0.0, 1.0], [1.0]),
        ValueError,
        "slopes must have shape",
    ),
    "spline NaN": (
        lambda: flows.rational_quadratic_spline(
            jnp.nan, [0.0, 1.0], [0.0, 1.0], [1.0, 1.0]
        ),
        ValueError,
        "x must be finite",
    ),
    "spline rounding": (
        lambda: flows.rational_quadratic(8, floor=1e-9),
        ValueError,
        "floor must be at least the rounding 1.2e-07 .*, got 1e-09",
    ),
    "bins": (
        lambda: flows.rational_quadratic(1),
        ValueError,
        "bins must be at least 2",
    ),
    "spline floor": (
        lambda: flows.rational_quadratic(8, floor=0.2),
        ValueError,
        "floor must be .* less than 1/bins=0.125, got 0.2",
    ),
    "spline ceiling": (
        lambda: flows.rational_quadratic(8, ceiling=1.0),
        ValueError,
        "ceiling must be above 1 and at most 8.4e.06, got 1.0",
    ),
    "ceiling": (
        lambda: flows.rational_quadratic(8, ceiling=1e9),
        ValueError,
        "ceiling must be above 1 and at most 8.4e.06, got 1000000000.0",
    ),
    "mask of one": (
        lambda: flows.half_mask(1),
        ValueError,
        "size must be between 2 and 65536, got 1",
    ),
    "one position": (
        lambda: flows.coupling(
            lambda x, c: x[..., None], flows.additive(), flows.checkerboard_mask()
        ).forward(jnp.zeros((1, 1, 2))),
        ValueError,
        "at least 2 positions",
    ),
    "coupled map": (
        lambda: flows.coupling_flow(KEY, (2,), jnp.tanh),
        TypeError,
        "scalar_map must be a scalar map",
    ),
    "mask size": (
        lambda: coupled(flows.additive(), flows.half_mask(2), (2,))(KEY).forward(
            jnp.zeros(3)
        ),
        ValueError,
        "x must have 2 channels",
    ),
    "no mask": (
        lambda: flows.coupling(jnp.tanh, flows.additive(), None),
        TypeError,
        "mask must be a half_mask",
    ),
    "no scalar map": (
        lambda: flows.coupling(jnp.tanh, jnp.exp, flows.half_mask(2)),
        TypeError,
        "scalar_map must be a scalar map",
    ),
    "conditioner shape": (
        lambda: flows.coupling(
            lambda x, c: x, flows.additive(), flows.half_mask(2)
        ).forward(jnp.zeros(2)),
        ValueError,
        r"conditioner must return shape \(1, 1\)",
    ),
    "condition missing": (
        lambda: flows.real_nvp(KEY, (2,), condition_size=3).log_prob(jnp.zeros(2)),
        ValueError,
        "condition must have condition_size=3 entries, got 0",
    ),
    "conditional": (
        lambda: conditioned(KEY).forward(jnp.zeros(3)),
        ValueError,
        "condition must be given",
    ),
    "one entry": (
        lambda: flows.real_nvp(KEY, (1,)),
        ValueError,
        "shape must have at least 2 entries",
    ),
    "affine bound": (
        lambda: flows.bounded_affine(0.0),
        ValueError,
        "bound must be positive",
    ),
    "masked width": (
        lambda: flows.maf(KEY, (3, 3), width=7),
        ValueError,
        "width must be at least 8 for 9 entries, got 7",
    ),
    "one patch": (
        lambda: flows.tarflow(KEY, (2, 2, 1)),
        ValueError,
        r"patch must leave two patches or more of shape=\(2, 2, 1\)",
    ),
    "heads": (
        lambda: flows.causal_transformer(KEY, 2, 2, 2, width=6, heads=4),
        ValueError,
        "heads must divide width=6",
    ),
    "patch": (
        lambda: flows.tarflow(KEY, (3, 4, 1)),
        ValueError,
        "sides divisible by patch=2",
    ),
    "no axis": (
        lambda: flows.autoregressive(
            flows.causal_transformer(KEY, 2, 2, 2), flows.bounded_affine()
        ).forward(1.0),
        ValueError,
        "x must have an axis to be autoregressive along",
    ),
    "masked condition": (
        lambda: flows.maf(KEY, (2,)).log_prob(jnp.zeros(2), jnp.ones(1)),
        ValueError,
        "condition must have condition_size=0 entries, got 1",
    ),
    "glow sides": (
        lambda: flows.glow(KEY, (4, 6, 1)),
        ValueError,
        (
            r"shape must be \(H, W, C\) with sides divisible by 2\^scales=4, got \(4, "
            r"6, 1\)"
        ),
    ),
    "glow shape": (
        lambda: flows.glow(KEY, (4, 4)),
        ValueError,
        r"shape must be \(H, W, C\) with .* got \(4, 4\)",
    ),
    "glow condition": (
        lambda: flows.glow(KEY, (2, 2, 1), scales=1, steps=1).log_prob(
            jnp.zeros((2, 2, 1)), jnp.ones(3)
        ),
        ValueError,
        "condition must have condition_size=0 entries, got 3",
    ),
    "convolution of a vector": (
        lambda: flows.convolutional(KEY, (4,), (4, 2)),
        ValueError,
        r"kept must be \(H, W, C\)",
    ),
    "convolution sides": (
        lambda: flows.convolutional(KEY, (4, 4, 1), (2, 2, 2)),
        ValueError,
        r"outputs must begin with the sides \(4, 4\)",
    ),
    "interpolated weights": (
        lambda: flows.interpolate(flows.maf(KEY, (2,)), jnp.zeros(2), jnp.ones(2), 0.5),
        ValueError,
        r"weights must have shape \(K,\)",
    ),
    "loss NaN": (
        lambda: flows.negative_log_likelihood(flows.maf(KEY, (2,)), [[0.0, jnp.nan]]),
        ValueError,
        "xs must be finite",
    ),
    "loss conditions": (
        lambda: flows.negative_log_likelihood(
            flows.maf(KEY, (2,)), jnp.zeros((3, 2)), jnp.zeros(2)
        ),
        ValueError,
        "conditions must have leading axis 3",
    ),
    "density NaN": (
        lambda: flows.reverse_kl(
            KEY, flows.flow(NORMAL, flows.chain()), lambda x: jnp.log(x[0]), 50
        ),
        ValueError,
        "log_density must be below infinity, got .* NaN",
    ),
    "density shape": (
        lambda: flows.importance_log_z(
            KEY, flows.flow(NORMAL, flows.chain()), jnp.exp, 5
        ),
        ValueError,
        r"log_density must return shape \(\)",
    ),
    "no flow": (
        lambda: flows.reverse_kl(KEY, flows.chain(), jnp.sum),
        TypeError,
        "flow must be made by flows.flow",
    ),
    "seed for a key": (
        lambda: flows.flow(NORMAL, flows.chain()).sample(0),
        TypeError,
        "key must be a typed key",
    ),
    "shape": (
        lambda: distributions.standard_normal((0,)),
        TypeError,
        "shape must be a tuple of positive integers",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name):
    assert_raises(*WRONG[name])
