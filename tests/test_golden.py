"""Samplers against runs of k-diffusion, diffusers, DPM-Solver and ER-SDE.

`tests/golden/make.py` describes the files and makes them. Each run is repeated in
float64 on the same grid, from the same points, with the same denoiser and the same
noise, draw by draw. It agrees to rounding. `WITHOUT_COUNTERPART` lists the runs of the
references that are no solver of ours, and why.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from diffjax import solvers
from diffjax.solvers import driver, noise_source
from tests.families import quick
from tests.golden.reading import golden

ETAS = (0.0, 0.5, 1.0)
TAUS = (0.0, 1.0)

K_DIFFUSION = {
    "euler": solvers.euler(),
    "heun": solvers.heun(),
    "dpm_2": solvers.dpm_2(),
    **{
        f"lms_{order}": solvers.adams_bashforth(order, guarded=False)
        for order in (1, 2, 3, 4)
    },
    "dpmpp_2m": solvers.dpmpp_2m(guarded=False),
    **{f"dpmpp_2s_ancestral_{eta}": solvers.dpmpp_2s(eta) for eta in ETAS},
    **{f"euler_ancestral_{eta}": solvers.euler_ancestral(eta) for eta in ETAS},
    **{f"dpm_2_ancestral_{eta}": solvers.dpm_2_ancestral(eta) for eta in ETAS},
    **{f"dpmpp_sde_{eta}": solvers.dpmpp_sde(eta) for eta in ETAS},
    **{
        f"dpmpp_2m_sde_midpoint_{eta}": solvers.dpmpp_2m_sde(eta**0.5, guarded=False)
        for eta in ETAS
    },
    **{
        f"dpmpp_2m_sde_heun_{eta}": solvers.sa_solver(2, 0, eta**0.5, guarded=False)
        for eta in ETAS
    },
    **{
        f"dpmpp_3m_sde_{eta}": solvers.dpmpp_3m_sde(
            eta**0.5, corrected=False, guarded=False
        )
        for eta in ETAS
    },
    "heun_churn": solvers.edm_stochastic(
        churn=3.0, noise_min=0.1, noise_max=10.0, noise_scale=1.003
    ),
}
"""name in k_diffusion.npz -> solver.

Its η of 2m_sde and 3m_sde is the square of ours.
"""

DIFFUSERS = {
    **{f"ddim_{eta}": solvers.ddim(eta) for eta in ETAS},
    "ddpm_fixed_small": solvers.ddpm("posterior"),
    "ddpm_fixed_large": solvers.ddpm("forward"),
    "dpmpp_multistep_1": solvers.ddim(),
    "dpmpp_multistep_2_midpoint": solvers.dpmpp_2m(guarded=False),
    "dpmpp_multistep_2_heun": solvers.sa_solver(2, 0, 0.0, guarded=False),
    "sde_dpmpp_multistep_1": solvers.ddim(1.0),
    "sde_dpmpp_multistep_2_midpoint": solvers.dpmpp_2m_sde(1.0, guarded=False),
    "sde_dpmpp_multistep_2_heun": solvers.sa_solver(2, 0, 1.0, guarded=False),
    "dpm_multistep_2_heun": solvers.deis(2, "log_rho", guarded=False),
    **{
        f"deis_{order}": solvers.deis(order, "log_rho", guarded=False)
        for order in (1, 2, 3)
    },
    **{
        f"unipc_{order}_{variant}": solvers.unipc(order, variant, guarded=False)
        for order in (1, 2, 3)
        for variant in ("bh1", "bh2")
    },
    "ipndm": solvers.ipndm(4, guarded=False),
    **{
        f"sa_solver_1_1_{tau}": solvers.sa_solver(1, 1, tau, guarded=False)
        for tau in TAUS
    },
    **{
        f"sa_solver_exact_{p}_{c}_{tau}": solvers.sa_solver(p, c, tau, guarded=False)
        for p, c in ((2, 2), (3, 3), (3, 4))
        for tau in TAUS
    },
    "dpm_singlestep_2_midpoint": solvers.dpm_solver(2),
    "dpmpp_singlestep_2_midpoint": solvers.dpmpp_2s(),
}
"""name in diffusers.npz -> solver."""

DPM_SOLVER = {
    **{f"dpm_singlestep_{order}": solvers.dpm_solver(order) for order in (1, 2, 3)},
    "dpm_multistep_1": solvers.ddim(),
    "dpm_multistep_2_taylor": solvers.deis(2, "log_rho", guarded=False),
    "dpmpp_singlestep_1": solvers.ddim(),
    "dpmpp_singlestep_2": solvers.dpmpp_2s(),
    "dpmpp_multistep_1": solvers.ddim(),
    "dpmpp_multistep_2": solvers.dpmpp_2m(guarded=False),
    "dpmpp_multistep_2_taylor": solvers.sa_solver(2, 0, 0.0, guarded=False),
    "dpmpp_multistep_3_taylor": solvers.dpmpp_3m(corrected=False, guarded=False),
}
"""name in dpm_solver.npz -> solver."""

ER_SDE = {
    f"er_sde_{order}_{label}": solvers.er_sde(
        order, eta, corrected=False, guarded=False
    )
    for order in (1, 2, 3)
    for label, eta in {"0.0": 0.0, "1.0": 1.0, "paper": solvers.eta_er_sde()}.items()
}
"""name in er_sde.npz -> solver. The references' Riemann sums are made exact."""

TABLES = {
    "k_diffusion": K_DIFFUSION,
    "diffusers": DIFFUSERS,
    "dpm_solver": DPM_SOLVER,
    "er_sde": ER_SDE,
}

HALVED_START = (
    "its second step has DPM-Solver++(2M)'s halved weight, ours the exact one, as "
    "k-diffusion's 3M has"
)
NOISE_MULTISTEP = (
    "a multistep DPM-Solver in the noise prediction with a halved weight; ours (DEIS) "
    "is exact"
)
TAYLOR = (
    "the Taylor variant of a singlestep method, whose weights are not the paper's "
    "algorithms'"
)
SINGLESTEP_3 = (
    "its second inner state is DPM-Solver-2's, which is not that of DPM-Solver-3's "
    "Algorithm 2"
)
SA_ADDITION = (
    "its weights of two answers have an O(h³) that the paper's have not; "
    "sa_solver_exact is without it"
)

WITHOUT_COUNTERPART = {
    "k_diffusion": {
        "euler_churn": (
            "EDM's sampler with Euler's step, which the paper does not propose"
        ),
        "heun_churn/zero": (
            "it churns before the step to 0 too, as Algorithm 2 does; ours returns "
            "D(x) there"
        ),
    },
    "diffusers": {
        "dpmpp_multistep_3": HALVED_START,
        "sde_dpmpp_multistep_3": (
            "its third-order term has −1/2 where 1/2 belongs: the coefficient does not "
            "vanish with h"
        ),
        "dpm_multistep_2_midpoint": NOISE_MULTISTEP,
        "dpm_multistep_3": NOISE_MULTISTEP,
        **{f"{name}_singlestep_2_heun": TAYLOR for name in ("dpm", "dpmpp")},
        **{
            f"{name}_singlestep_3_{kind}": SINGLESTEP_3
            for name in ("dpm", "dpmpp")
            for kind in ("midpoint", "heun")
        },
        **{
            f"sa_solver_{p}_{c}_{tau}": SA_ADDITION
            for p, c in ((2, 2), (3, 3), (3, 4))
            for tau in TAUS
        },
    },
    "dpm_solver": {
        "dpm_singlestep_2_taylor": TAYLOR,
        "dpm_singlestep_3_taylor": TAYLOR,
        "dpm_multistep_2": NOISE_MULTISTEP,
        "dpm_multistep_3": NOISE_MULTISTEP,
        "dpm_multistep_3_taylor": NOISE_MULTISTEP,
        "dpmpp_singlestep_2_taylor": TAYLOR,
        "dpmpp_singlestep_3": "DPM-Solver++(3S), which is not among our solvers",
        "dpmpp_singlestep_3_taylor": TAYLOR,
        "dpmpp_multistep_3": HALVED_START,
    },
    "er_sde": {},
}
"""file -> {SAMPLER or SAMPLER/GRID: why no solver of ours is that}."""


def runs(file):
    """SAMPLER/GRID of each run in a file."""
    return [key.removesuffix("/out") for key in golden(file) if key.endswith("/out")]


def setting(file, run):
    """(schedule, grid, starts (B, D)) of a run."""
    arrays = golden(file)
    grid = run.split("/")[1]
    start = arrays["problem/start"]
    if run.endswith("/vp"):
        return dj.schedules.vp_linear(0.1, 20.0), arrays["grid/vp"], start
    if file in ("k_diffusion", "er_sde"):
        ts = arrays[f"grid/{grid}"]
        return dj.schedules.edm(0.01, 100.0), ts, ts[0] * start
    if file == "dpm_solver":
        return dj.schedules.vp_linear(0.1, 20.0), arrays["grid/ts"], start
    schedule = dj.schedules.from_betas(arrays["chain/betas"])
    ts = dj.grids.from_indices(schedule, arrays["grid/timesteps"] + 1)
    if f"{run}/orders" in arrays:
        fine = dj.schedules.time_of_log_snr(
            schedule, -2 * jnp.log(arrays["grid/singlestep_sigmas"])
        )
        ts = fine[:: arrays[f"{run}/orders"].max()]
    elif grid == "zero":
        ts = dj.grids.to_zero(ts)
    return schedule, ts, start * schedule.sigma(ts[0])


def draws_of(file, run, ts):
    """The run's noise (steps, draws per step, B, D), zeros where the sampler
    drew none.

    k-diffusion's dpmpp_sde draws for the first half of a step, then for the
    whole: z_½ and z. Ours follows one Brownian path in the clock 1/ρ²,

        z_½ = √θ z + √(1 − θ) (√(3θ(1 − θ)) z_1 + √(1 − 3θ(1 − θ)) z_2).

    With z_1 = 0 there is a z_2 for any z_½.
    """
    arrays = golden(file)
    steps, shape = len(ts) - 1, arrays["problem/start"].shape
    noise = arrays.get(f"{run}/noise", np.zeros((steps, *shape)))
    if run.startswith("dpmpp_sde") and f"{run}/noise" in arrays:
        half, whole = noise[0::2], noise[1::2]
        rho, end = (level[: len(whole), None, None] for level in (ts[:-1], ts[1:]))
        theta = (rho / end - 1) / ((rho / end) ** 2 - 1)
        second = (half - np.sqrt(theta) * whole) / np.sqrt(
            (1 - theta) * (1 - 3 * theta * (1 - theta))
        )
        noise = np.stack([whole, np.zeros_like(whole), second], axis=1)
    else:
        noise = np.repeat(noise[:steps, None], 3, axis=1)
    return np.concatenate([noise, np.zeros((steps - len(noise), *noise.shape[1:]))])


def our_path(solver, file, run):
    """The states (steps + 1, B, D) of our solver on the run's problem."""
    schedule, ts, start = setting(file, run)
    arrays = golden(file)
    target = dj.targets.gaussian_mixture(
        *(arrays[f"problem/{part}"] for part in ("weights", "means", "scales"))
    )
    problem = solvers.diffusion(schedule, dj.targets.denoiser(target, schedule))
    zero_end = run.endswith("/zero")

    noise = jnp.asarray(draws_of(file, run, np.asarray(ts)))
    return _paths(solver, zero_end, problem, jnp.asarray(start), jnp.asarray(ts), noise)


@functools.partial(quick, static_argnums=(0, 1))
def _paths(solver, zero_end, problem, start, ts, noise):
    def one(x, noise):  # (D,), (steps, draws, D)
        source = noise_source.Source(lambda step, draw: noise[step, draw])
        return driver.run(
            source, solver, problem, x=x, ts=ts, path=True, zero_end=zero_end
        )[0]

    return jax.vmap(one, in_axes=(0, 2), out_axes=1)(start, noise)


def their_path(file, run):
    """The states that our path should have: the whole path where the file has
    one, else its end alone.
    """
    arrays = golden(file)
    path = arrays.get(f"{run}/path", arrays[f"{run}/out"][None])
    return path[:: arrays[f"{run}/orders"].max()] if f"{run}/orders" in arrays else path


def excused(file, run):
    """Whether a run is said to have no counterpart."""
    return (
        run in WITHOUT_COUNTERPART[file]
        or run.split("/")[0] in WITHOUT_COUNTERPART[file]
    )


REPEATED = ("_0.0/plain", "_0.0/zero", "_0.5/zero", "_1.0/plain")
"""Endings of runs that differ from another in η alone, or in whether the grid
ends at 0: the long proofs, with the lower orders of ER-SDE.
"""

CASES = [
    pytest.param(
        file,
        run,
        id=f"{file}-{run}",
        marks=pytest.mark.slow
        if run.endswith(REPEATED) or run.startswith(("er_sde_1", "er_sde_2"))
        else (),
    )
    for file in TABLES
    for run in runs(file)
    if not excused(file, run)
]


@pytest.mark.parametrize("file, run", CASES)
def test_a_sampler_is_its_reference(file, run, x64):
    """Each state agrees to 1e-12 of the state's size, 4500 units of rounding:
    ten steps of up to ten coefficients each, some of which the references form
    with a loss of two digits. What is observed is 2e-14.
    """
    ours, theirs = (
        our_path(TABLES[file][run.split("/")[0]], file, run),
        their_path(file, run),
    )
    ours = np.asarray(ours)[-len(theirs) :]
    error = np.abs(ours - theirs).max(axis=(1, 2)) / np.abs(theirs).max(axis=(1, 2))
    assert error.max() <= 1e-12, f"relative error by state: {error}"


def test_what_is_said_to_have_no_counterpart_is_in_the_files():
    for file, reasons in WITHOUT_COUNTERPART.items():
        known = {name for run in runs(file) for name in (run, run.split("/")[0])}
        assert set(reasons) | set(TABLES[file]) <= known
        assert not set(reasons) & set(TABLES[file])
