"""Power-function averages: the profile against its closed form, in the state, in
checkpoints, and other lengths reconstructed from snapshots.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax import training
from diffjax.training import Checkpoints, Snapshots, averages, reconstruct

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


def test_lengths_and_steps_that_no_average_has_raise():
    for call in (averages.exponent, lambda length: initial((length,))):
        with pytest.raises(ValueError, match="must be at least 1e-09, got 1e-200"):
            call(1e-200)
    with pytest.raises(ValueError, match=r"stored must hold pairs .* got \[\]"):
        averages.combination([], 8, 0.1)
    with pytest.raises(ValueError, match="stored must hold pairs"):
        averages.combination([(0, 0.1)], 8, 0.1)
    with pytest.raises(ValueError, match="step must be at least 1, got 0"):
        averages.combination([(8, 0.1)], 0, 0.1)
    with pytest.raises(ValueError, match="step must be at least 1, got 0.5"):
        averages.decay(0.5, 1.0)


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


# ---- other lengths


def closed_form(t, gamma, u, delta):
    """∫ of the product of two densities of power functions."""
    earlier, total = min(t, u), gamma + delta + 1
    power = earlier**total / (t ** (gamma + 1) * u ** (delta + 1))
    return (gamma + 1) * (delta + 1) / total * power


def test_inner_products_are_the_sums_over_steps():
    pairs = [(3, 0.0), (7, 1.5), (20, 6.94), (20, 16.97), (21, 2.0)]
    rows = np.zeros((len(pairs), 21))
    for row, (t, gamma) in zip(rows, pairs, strict=True):
        row[:t] = profile(t, gamma)
    products = averages.inner_products(pairs, pairs[1:])
    np.testing.assert_allclose(products, rows @ rows[1:].T, rtol=1e-12)


def test_inner_products_approach_the_closed_form():
    """The closed form is the integral, by Gauss–Legendre, which is exact here.

    Its difference from the sum over steps is one of the midpoint rule: a product
    of powers changes by γ/s a step, so that the sum is off by (γ + δ)²/t² or less.
    """
    nodes, weights = np.polynomial.legendre.leggauss(20)
    for (t, gamma), (u, delta) in (((400, 6), (900, 16)), ((900, 6), (900, 7))):
        earlier = min(t, u)
        tau, share = earlier * (nodes + 1) / 2, earlier * weights / 2
        densities = [
            (power + 1) * tau**power / float(end) ** (power + 1)
            for power, end in ((gamma, t), (delta, u))
        ]
        exact = closed_form(t, float(gamma), u, float(delta))
        assert share @ np.prod(densities, axis=0) == pytest.approx(exact, rel=1e-12)
        summed = averages.inner_products([(t, float(gamma))], [(u, float(delta))])[0, 0]
        assert summed == pytest.approx(exact, rel=(gamma + delta) ** 2 / earlier**2)


def test_powers_of_a_million_steps_do_not_overflow():
    pairs = [(500_000, 400.0), (1_000_000, 400.0)]
    products = averages.inner_products(pairs, pairs)
    for i, (t, gamma) in enumerate(pairs):
        expected = (gamma + 1) ** 2 / (2 * gamma + 1) / t  # the closed form at t = u
        assert products[i, i] == pytest.approx(expected, rel=1e-5)


def synthetic(steps):
    """Parameters that decay, turn and jitter, in float64."""
    s = np.arange(1, steps + 1)[:, None] / steps
    phases = np.linspace(0, 3, 8)
    jitter = np.random.default_rng(0).normal(size=(steps, 8))
    return 1 + np.sin(3 * s + phases) + np.exp(-5 * s) + 0.02 * jitter


@pytest.mark.parametrize(
    ("every", "lengths", "error"),
    [(1, (0.02, 0.07, 0.15, 0.25), 1e-6), (10, (0.05, 0.07, 0.10, 0.15), 1e-6)],
)
def test_combinations_of_float32_snapshots_are_the_average(every, lengths, error):
    """To 1e-6 of the parameters: any length from every step, and 0.05 … 0.15 from a
    hundred snapshots.
    """
    steps = 1000 // (10 // every)
    trajectory = synthetic(steps)
    stored = [(t, r) for t in range(every, steps + 1, every) for r in LENGTHS]
    snapshots = np.array(
        [profile(t, averages.exponent(r)) @ trajectory[:t] for t, r in stored]
    ).astype(np.float32)
    for length in lengths:
        coefficients = averages.combination(stored, steps, length)
        assert coefficients.sum() == pytest.approx(1, abs=1e-10)
        expected = profile(steps, averages.exponent(length)) @ trajectory
        gap = np.abs(coefficients @ snapshots - expected).max()
        assert gap < error * np.abs(expected).max(), length


def test_reconstructed_averages_are_those_tracked_during_training(tmp_path):
    """A run that tracks four lengths, two of which are in the snapshots."""
    others = (0.07, 0.2)
    states = trained(30, initial((*LENGTHS, *others)))
    with Snapshots(tmp_path, every=1) as snapshots:
        for state in states:
            snapshots.save(only(state, LENGTHS))
    last = states[-1]
    made = training.reconstruct_many(tmp_path, others)
    for length, flat in zip(others, made, strict=True):
        tracked = last.averages[last.lengths.index(length)]["w"]
        np.testing.assert_allclose(flat["w"], tracked, rtol=1e-6)
        again = reconstruct(tmp_path, length, template=last.params)
        np.testing.assert_array_equal(again["w"], flat["w"])
        assert again["none"].shape == (0,)
    early = reconstruct(tmp_path, 0.07, step=20)["w"]
    np.testing.assert_allclose(early, states[19].averages[2]["w"], rtol=1e-6)


def only(state, lengths):
    """The state with some of its averages."""
    kept = tuple(state.averages[state.lengths.index(length)] for length in lengths)
    return dataclasses.replace(state, averages=kept, lengths=tuple(lengths))


# ---- snapshots as files


def saved(folder, steps, **settings):
    """The states of a run whose snapshots are in a folder."""
    states = trained(steps)
    with Snapshots(folder, **{"every": 1, **settings}) as snapshots:
        for state in states:
            snapshots.save(state)
    return states


def test_snapshots_are_due_at_the_first_save_in_every_so_many_steps(tmp_path):
    states = trained(9)
    with Snapshots(tmp_path, every=4) as snapshots:
        snapshots.save(initial())
        for step in (3, 5, 6, 7, 9):
            snapshots.save(states[step - 1])
        assert snapshots.steps() == [5, 9]


def test_one_step_never_has_two_snapshots(tmp_path):
    states = saved(tmp_path, 3)
    other = STEP(states[1], jnp.zeros(3))[0]
    with Snapshots(tmp_path, every=1) as snapshots:
        snapshots.save(states[2])  # the same bits: nothing to do
        with pytest.raises(ValueError, match="3 holds other averages than state"):
            snapshots.save(other)
        with pytest.raises(ValueError, match="a snapshot of step 3, after that of"):
            snapshots.save(states[0])
        with pytest.raises(ValueError, match="state must keep averages"):
            snapshots.save(initial(()))
        with pytest.raises(BlockingIOError, match="is in use by"):
            Snapshots(tmp_path, every=1)
        snapshots.continue_from(2)
        assert snapshots.steps() == [1, 2]
        snapshots.save(other)
    expected = other.averages[0]["w"]
    np.testing.assert_allclose(reconstruct(tmp_path, 0.05)["w"], expected, rtol=1e-6)


def test_a_resumed_run_goes_on_from_its_checkpoint(tmp_path):
    """Snapshots after the restored checkpoint go, and come again as they were."""
    states = trained(6)
    for kill in (3, 5):
        with (
            Snapshots(tmp_path / "averages", every=1) as snapshots,
            Checkpoints(tmp_path / "run", {}, snapshots=snapshots) as checkpoints,
        ):
            state = checkpoints.restore_latest(initial()) or initial()
            assert snapshots.steps() == list(range(1, int(state.step) + 1))
            for step in range(int(state.step) + 1, kill + 1):
                checkpoints.save(step, states[step - 1])
            snapshots.save(states[kill])  # as if killed before the checkpoint


def test_damaged_and_half_written_snapshots_are_passed_over(tmp_path):
    states = saved(tmp_path, 4)
    (tmp_path / "5.writing" / "averages").mkdir(parents=True)
    (tmp_path / "3" / "manifest.json").write_text("{")
    for file in (tmp_path / "4" / "averages").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.warns(UserWarning, match="the snapshot .* cannot be read"):
        made = reconstruct(tmp_path, 0.05)["w"]
    np.testing.assert_allclose(made, states[1].averages[0]["w"], rtol=1e-6)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no snapshot can"):
        reconstruct(tmp_path, 0.05, step=4)
    with pytest.raises(FileNotFoundError, match=r"of step 9; it has steps \[1, 2, 3"):
        reconstruct(tmp_path, 0.05, step=9)
    (tmp_path / "2" / "manifest.json").unlink()
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "notes.txt").write_text("mine")
    (tmp_path / "8" / "averages").mkdir(parents=True)  # would stop the save of step 8
    with (
        pytest.warns(UserWarning, match="the snapshot .*/2 is set aside"),
        pytest.warns(UserWarning, match="the snapshot .*/8 is set aside"),
        pytest.warns(UserWarning, match="/7 is no snapshot: it is left alone"),
        Snapshots(tmp_path, every=1) as snapshots,
    ):
        assert not (tmp_path / "5.writing").exists()
        snapshots.save(dataclasses.replace(states[-1], step=jnp.int32(8)))
        assert snapshots.steps()[-1] == 8


def test_half_precision_snapshots_are_off_by_their_rounding(tmp_path):
    states = saved(tmp_path, 3, dtype="float16")
    made = reconstruct(tmp_path, 0.10)["w"]
    np.testing.assert_allclose(made, states[-1].averages[1]["w"], rtol=2.0**-11)
    large = jax.tree.map(lambda leaf: 1e5 * leaf, states[-1].averages)
    with Snapshots(tmp_path / "large", every=1, dtype="float16") as snapshots:
        with pytest.raises(ValueError, match=r"0\.05/w' must be finite in float16"):
            snapshots.save(dataclasses.replace(states[-1], averages=large))


def test_templates_of_other_arrays_are_named(tmp_path):
    saved(tmp_path, 1)
    with pytest.raises(ValueError, match="0.05/w' is float32"):
        reconstruct(tmp_path, 0.05, template={"w": jnp.zeros(4)})
