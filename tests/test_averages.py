"""Power-function averages: the profile against its closed form, in the state, in
checkpoints, and other lengths reconstructed from snapshots.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax import training
from diffjax.training import Checkpoints, averages

LENGTHS = (0.05, 0.10)
RULE = optax.sgd(0.1)


def loss_fn(params, key, batch):
    shift = jax.random.normal(key, params["w"].shape)
    return jnp.mean((params["w"] - batch - 0.3 * shift) ** 2), {}


STEP = training.make_step(loss_fn, RULE)


def initial(lengths=LENGTHS):
    params = {"w": jnp.arange(1.0, 4.0), "none": jnp.zeros((0,))}
    return training.init(jax.random.key(1), params, RULE, averages=lengths)


def trained(steps, state=None):
    """The states after 1 … steps steps."""
    states, state = [], initial() if state is None else state
    for _ in range(steps):
        state, _ = STEP(state, jnp.full(3, 2.0))
        states.append(state)
    return states


def profile(steps, gamma):
    """Weights of the parameters of steps 1 … t in the average after step t = steps."""
    powers = (np.arange(steps + 1) / steps) ** (gamma + 1)
    return np.diff(powers)


# ---- profiles


def test_relative_lengths_and_exponents_are_inverse():
    for sigma_rel in (1e-4, 0.01, 0.05, 0.1, 0.2, 0.25, 0.28, averages.LONGEST):
        gamma = averages.exponent(sigma_rel)
        assert averages.relative_length(gamma) == pytest.approx(sigma_rel, rel=1e-13)
    for gamma in (0.0, 1.0, 6.94, 16.97, 1e3):
        back = averages.exponent(averages.relative_length(gamma))
        assert back == pytest.approx(gamma, rel=1e-12, abs=1e-13)
    assert averages.exponent(averages.LONGEST) == 0  # the plain mean


def test_relative_length_is_the_standard_deviation_of_the_profile():
    """Moments of the density (γ+1) τ^γ of τ = s/t by Gauss–Legendre, exact here."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    nodes, weights = (nodes + 1) / 2, weights / 2
    for gamma in (0, 1, 6, 16):
        density = (gamma + 1) * nodes**gamma * weights
        mean = density @ nodes
        deviation = np.sqrt(density @ (nodes - mean) ** 2)
        assert averages.relative_length(gamma) == pytest.approx(deviation, rel=1e-12)


def test_decay_at_the_first_step_and_late():
    assert averages.decay(1, 16.97) == 0
    late, gamma = 1_000_000, 16.97
    gap = 1 - (1 - 1 / late) ** (gamma + 1)
    assert 1 - float(averages.decay(late, gamma)) == pytest.approx(gap, abs=6e-8)


# ---- in the state


def test_averages_in_the_state_are_weighted_sums_of_the_trajectory():
    """Exact from step 1 on, against the profile's weights in float64."""
    states = trained(40)
    trajectory = np.array([s.params["w"] for s in states], np.float64)
    np.testing.assert_array_equal(states[0].averages[0]["w"], states[0].params["w"])
    for i, length in enumerate(LENGTHS):
        weights = profile(40, averages.exponent(length))
        assert weights.sum() == pytest.approx(1)
        # Each of 40 steps rounds twice by half a unit of float32.
        bound = 40 * 2.0**-23 * np.abs(trajectory).max()
        error = states[-1].averages[i]["w"] - weights @ trajectory
        assert np.abs(error).max() <= bound


def test_a_step_that_is_not_taken_leaves_the_averages():
    state = trained(3)[-1]
    after, metrics = STEP(state, jnp.full(3, jnp.nan))
    assert not metrics["finite"] and after.step == 3
    np.testing.assert_array_equal(after.averages[1]["w"], state.averages[1]["w"])


def test_averages_of_half_precision_parameters_are_float32():
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    state = training.init(jax.random.key(0), params, RULE, averages=(0.1,))
    step = training.make_step(lambda p, k, b: (jnp.sum(p["w"] ** 2), {}), RULE)
    state, _ = step(state, jnp.zeros(1))
    assert state.averages[0]["w"].dtype == jnp.float32
    assert state.params["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("lengths", [(0.3,), (0.0,), (-0.1,), (0.1, 0.1)])
def test_wrong_lengths_are_named(lengths):
    with pytest.raises(ValueError, match="averages"):
        initial(lengths)


# ---- in checkpoints


def restored(folder, template):
    with Checkpoints(folder, {}) as checkpoints:
        return checkpoints.restore_latest(template)


def save(folder, state):
    with Checkpoints(folder, {}) as checkpoints:
        checkpoints.save(int(state.step), state)


def test_checkpoints_carry_the_averages(tmp_path):
    *_, third = trained(3)
    save(tmp_path, third)
    again = restored(tmp_path, initial())
    assert again.lengths == LENGTHS
    for one, other in zip(third.averages, again.averages, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    resumed, straight = trained(2, again)[-1], trained(2, third)[-1]
    np.testing.assert_array_equal(resumed.averages[1]["w"], straight.averages[1]["w"])


def test_an_average_never_passes_for_one_of_another_length(tmp_path):
    state = trained(3)[-1]
    save(tmp_path, state)
    swapped = restored(tmp_path, initial(LENGTHS[::-1]))
    assert swapped.lengths == LENGTHS[::-1]
    assert not np.array_equal(state.averages[0]["w"], state.averages[1]["w"])
    np.testing.assert_array_equal(swapped.averages[1]["w"], state.averages[0]["w"])
    with pytest.raises(ValueError, match=r"averages/0\.02/w' is absent"):
        restored(tmp_path, initial((0.02, 0.05, 0.1)))


def test_checkpoints_without_averages_still_restore(tmp_path):
    """The arrays on disk are those of before, name by name."""
    state = trained(2, initial(()))[-1]
    names = training.arrays.items_of(state)["rest"].keys()
    assert not any(name.startswith("averages") for name in names)
    save(tmp_path, state)
    again = restored(tmp_path, initial(()))
    np.testing.assert_array_equal(again.params["w"], state.params["w"])
    with pytest.raises(ValueError, match=r"averages/0\.05/w' is absent"):
        restored(tmp_path, initial())
    assert again.averages == () and again.lengths == ()
