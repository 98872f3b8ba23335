"""Settings under which users run: strict dtype promotion, an import while
something is traced.
"""

import subprocess
import sys

import jax
import numpy as np
import pytest

import diffjax as dj
from diffjax import langevin, losses, predictions, targets, training
from tests import fuzz_calls


def strict():
    return jax.numpy_dtype_promotion("strict")


def test_the_main_verbs_return_the_same_under_strict_promotion():
    """With a grid of levels, integers and float64 as data, and a chain, whose
    diagnostics count.
    """
    vp, key = dj.schedules.vp_linear(), jax.random.key(0)
    target = targets.gaussian_mixture([0.4, 0.6], [[1.0, 0.0], [-1.0, 0.5]], [0.4, 0.7])
    net = predictions.denoiser(vp, lambda x, t: 0.5 * x, "noise")
    x, data = np.array([1, -1]), np.linspace(-1, 1, 6).reshape(3, 2)

    def results():
        denoiser, (solver, grid) = (
            targets.denoiser(target, vp),
            (dj.solvers.ddim(), dj.grids.karras(vp, 4)),
        )
        samples = langevin.run_many(
            key, langevin.mala(target, 0.1), data, 8, warm_up=2
        ).samples
        return (
            dj.sample(key, denoiser, vp, solver=solver, grid=grid, shape=(2,)),
            dj.encode(denoiser, vp, x, solver=solver, grid=grid),
            losses.batch_loss(key, net, data)[0],
            langevin.effective_sample_size(samples),
            langevin.r_hat(samples),
        )

    plain = results()
    with strict():
        for computed, expected in zip(results(), plain, strict=True):
            np.testing.assert_array_equal(computed, expected)


def test_training_runs_under_strict_promotion_to_the_same_parameters():
    """optax, whose warm-up divides integers, too."""

    def trained():
        optimiser = training.optimiser(1e-2, warmup_steps=2, total_steps=9)
        one = training.make_step(
            lambda p, key, batch: (((batch @ p["w"]) ** 2).mean(), {}), optimiser, 0.9
        )
        state = training.init(
            jax.random.key(0), {"w": np.ones((2, 2), np.float32)}, optimiser
        )
        batches = training.Batches(np.ones((6, 2), np.float32), 2, seed=0)
        return training.fit(state, training.make_steps(one), batches, 6, block=3)

    plain = trained()
    with strict():
        computed = trained()
    for name in ("params", "ema"):
        np.testing.assert_array_equal(
            getattr(computed, name)["w"], getattr(plain, name)["w"]
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(fuzz_calls.calls()))
def test_every_call_of_the_table_runs_under_strict_promotion(name):
    with strict():
        function, arguments = fuzz_calls.calls()[name]
        jax.block_until_ready(function(**arguments))


FIRST_IMPORT_UNDER_JIT = """
import jax, jax.numpy as jnp

def f(x):
    import diffjax as dj
    return x + dj.grids.log_snr(dj.schedules.vp_linear(), 2)

first = jax.jit(f)(jnp.zeros(3))
import diffjax as dj
assert dj.types.is_eager(1.0)
assert jnp.allclose(f(jnp.zeros(3)), first)
"""


def test_the_package_may_be_imported_while_something_is_traced():
    subprocess.run(
        [sys.executable, "-c", FIRST_IMPORT_UNDER_JIT], check=True, timeout=120
    )
