"""Schedulers of diffusers: runs, timesteps, tables and configurations, both ways.

`tests/golden/make_diffusers_schedulers.py` describes the golden file and makes it.
"""

import functools
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
import diffjax.predictions.kinds
from diffjax import predictions
from diffjax.interop import diffusers
from diffjax.interop.diffusers import scheduler_options
from diffjax.solvers import driver, noise_source
from diffjax.types import pytree
from tests.families import quick
from tests.golden import reading
from tests.golden.scheduler_rows import ROWS, START, draw, network

CHAIN_KINDS = ("noise", "data", "v")

golden = functools.partial(reading.golden, "diffusers_schedulers")


def write(folder, config):
    """A folder with a scheduler's configuration."""
    folder.mkdir(exist_ok=True)
    (folder / "scheduler_config.json").write_text(json.dumps(config))
    return folder


@pytree
class AnyKind:
    """The denoiser of `network` whose kind is a number: one program for three."""

    schedule: object
    kind: object

    def __call__(self, x, t):
        output = network(jnp, x, diffusers.timestep(self.schedule, t))
        r = predictions.kinds.rates_for("noise", self.schedule, t)
        pairs = [predictions.KINDS[kind](r, 0.5) for kind in CHAIN_KINDS]
        a, b = (
            jnp.stack(jnp.broadcast_arrays(*c))[self.kind]
            for c in zip(*pairs, strict=True)
        )
        return (r.sigma * output - b * x) / (a * r.sigma - b * r.alpha)


def denoiser_of(schedule, kind):
    """A denoiser of `network`."""
    if kind in CHAIN_KINDS:
        return AnyKind(schedule, jnp.asarray(CHAIN_KINDS.index(kind)))
    if kind == "edm":
        net = lambda x, t: network(jnp, x, t)
        return predictions.denoiser(schedule, net, kind)
    net = lambda x, t: network(jnp, x, diffusers.timestep(schedule, t))
    return predictions.denoiser(schedule, net, kind)


@functools.partial(quick, static_argnums=0)
def paths(solver, problems, starts, grids):
    """The states (runs, steps + 1, 2, 3) of runs, and their timesteps."""
    draws = draw(jnp, jnp.arange(grids.shape[1])[:, None])
    source = noise_source.Source(lambda step, draw: draws[step])

    def one(problem, ts, x):
        return driver.run(
            source, solver, problem, x=x, ts=ts, path=True, zero_end=True
        )[0]

    examples = jax.vmap(one, (None, None, 0), out_axes=1)
    timesteps = lambda problem, ts: jax.vmap(
        lambda t: diffusers.timestep(problem.schedule, t)
    )(ts)
    return (
        jax.vmap(examples)(problems, grids, starts),
        jax.vmap(timesteps)(problems, grids),
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folder of each row's configuration."""
    root = tmp_path_factory.mktemp("schedulers")
    return {
        row: write(
            root / row.replace("/", "-"), json.loads(str(golden()[f"{row}/config"]))
        )
        for row in ROWS
    }


MAIN = ("DDIM/", "DPMSolver", "UniPC", "EulerDiscrete/", "flow", "edm", "euler_karras")
"""Beginnings of the rows that are not slow."""


def check_runs(rows, folders):
    """Each state agrees to 1e-10 of its size over 20 steps. The timesteps are equal.

    At α = 2⁻¹² a noise prediction multiplies rounding by 4096.

    Rows of one solver and one structure of the schedule are one program.
    """
    groups = {}
    for row in rows:
        settings = json.loads(str(golden()[f"{row}/settings"]))
        schedule, kind, grid = diffusers.load_scheduler(folders[row])
        shift = {} if settings["mu"] is None else {"mu": settings["mu"]}
        ts = grid(settings["steps"], **shift)
        problem = dj.solvers.diffusion(schedule, denoiser_of(schedule, kind))
        start = START * (float(schedule.t_max) if kind == "edm" else 1.0)
        structure = jax.tree.structure(problem) if kind in CHAIN_KINDS else row
        key = diffusers.solver(folders[row]), structure, len(ts)
        groups.setdefault(key, []).append((row, problem, start, ts))
    for (solver, *_), runs in groups.items():
        rows, *values = zip(*runs, strict=True)
        problems, starts, grids = (
            jax.tree.map(lambda *leaves: jnp.stack(jnp.asarray(leaves)), *value)
            for value in values
        )
        results = paths(solver, problems, starts, grids)
        for row, ts, path, timesteps in zip(rows, grids, *results, strict=True):
            check_run(row, np.asarray(ts), np.asarray(path), np.asarray(timesteps))


def check_run(row, ts, ours, timesteps):
    """Compares one run with the golden file."""
    theirs, taken = golden()[f"{row}/path"], golden()[f"{row}/timesteps"]
    # a last step of no length is left out
    theirs, left = theirs[: len(ours)], theirs[len(ours) - 1 :]
    np.testing.assert_allclose(left, np.broadcast_to(left[:1], left.shape), rtol=1e-9)
    error = np.abs(ours - theirs).max((1, 2)) / np.abs(theirs).max((1, 2))
    assert error.max() <= 1e-10, f"{row}: relative error by state: {error}"
    taken = np.append(taken[:1], taken[1::2]) if row == "heun" else taken
    count = min(len(taken), len(ts) - (ts[-1] == 0))
    np.testing.assert_allclose(
        timesteps[:count], taken[:count], rtol=1e-12, atol=1e-9, err_msg=row
    )


def test_runs_are_those_of_diffusers(folders, x64):
    check_runs([row for row in ROWS if row.startswith(MAIN)], folders)


@pytest.mark.slow
def test_further_runs_are_those_of_diffusers(folders, x64):
    check_runs([row for row in ROWS if not row.startswith(MAIN)], folders)


def test_tables_are_those_of_diffusers(folders):
    """ᾱ agrees to 1e-12 of its size: a product of 1000 factors.

    diffusers sets the last ᾱ of a chain rescaled to zero SNR to 2⁻²⁴ for samplers
    that divide by it. Our chains never grow, so entries below the last differ.
    """
    for key, theirs in golden().items():
        if key.startswith("alpha_bars/"):
            folder = folders[key.removeprefix("alpha_bars/")]
            schedule = diffusers.load_scheduler(folder)[0]
            bars = np.cumprod(1 - np.asarray(schedule.betas))
            differing = np.flatnonzero(theirs < theirs[-1])
            grows = np.any(np.diff(theirs) > 0)
            assert differing.tolist() == ([996, 997, 998] if grows else [])
            bars, theirs = (np.delete(table, differing) for table in (bars, theirs))
            np.testing.assert_allclose(bars, theirs, rtol=1e-12)


SAVED = {
    "linear": ("DDIMScheduler", {"clip_sample": False, "steps_offset": 1}),
    "trained": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "rescaled": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
}


def saved_chain(name):
    """A chain whose betas are named, or are not."""
    betas = dj.ddpm.linear_betas(100)
    if name == "rescaled":
        betas = dj.schedules.rescale_zero_terminal_snr(betas)
    return dj.schedules.from_betas(betas if name == "linear" else betas**1.1)


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_chain_is_read_again(name, tmp_path):
    class_name, settings = SAVED[name]
    chain = saved_chain(name)
    diffusers.save_scheduler(tmp_path, chain, "v", class_name=class_name, **settings)
    schedule, kind, grid = diffusers.load_scheduler(tmp_path)
    assert kind == "v"
    kept = schedule.alpha_bars > 2.0**-23  # what Euler's ends with is finite
    np.testing.assert_allclose(schedule.betas[kept], chain.betas[kept], rtol=1e-9)
    assert len(grid(10)) == 11
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert config["_class_name"] == class_name
    assert (config["trained_betas"] is None) == (name == "linear")


@pytest.mark.parametrize("steps", (100, 1000, 4000))
def test_cosine_betas_are_saved_by_their_name(steps, tmp_path):
    chain = dj.schedules.from_betas(dj.ddpm.cosine_betas(steps))
    diffusers.save_scheduler(tmp_path, chain, "noise", clip_sample=False)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert config["beta_schedule"] == "squaredcos_cap_v2"
    assert config["trained_betas"] is None


@pytest.mark.parametrize(
    "settings",
    (
        {"prediction_type": "sample"},
        {"beta_end": 0.5},
        {"num_train_timesteps": 10},
        {"rescale_betas_zero_snr": True},
    ),
)
def test_settings_that_contradict_the_schedule_or_the_kind_raise(settings, tmp_path):
    chain = dj.schedules.from_betas(dj.ddpm.linear_betas(100))
    with pytest.raises(ValueError, match=f"settings must not have .*{[*settings][0]}"):
        diffusers.save_scheduler(tmp_path, chain, "v", **settings)
    assert not list(tmp_path.iterdir())


def test_a_saved_edm_is_read_again(tmp_path):
    edm = dj.schedules.edm(0.01, 50.0)
    diffusers.save_scheduler(tmp_path, edm, "edm", class_name="EDMEulerScheduler")
    schedule, kind, _ = diffusers.load_scheduler(tmp_path)
    assert (float(schedule.t_min), float(schedule.t_max), kind) == (0.01, 50.0, "edm")


def test_a_saved_flow_is_read_again(tmp_path):
    flow, name = dj.schedules.rectified_flow(), "FlowMatchEulerDiscreteScheduler"
    diffusers.save_scheduler(tmp_path, flow, "velocity", class_name=name, shift=3.0)
    schedule, kind, grid = diffusers.load_scheduler(tmp_path)
    assert (float(schedule.t_max), kind) == (1.0, "velocity")
    assert float(grid(4)[1]) > 0.75
    with pytest.raises(TypeError, match="from_betas"):
        diffusers.save_scheduler(tmp_path, flow, "v")


def test_timesteps_of_all_indices_are_whole_in_float32():
    chain = dj.schedules.from_betas(dj.ddpm.linear_betas(1000))
    ts = jnp.asarray(chain.times, jnp.float32)
    taken = jax.vmap(lambda t: diffusers.timestep(chain, t))(ts)
    np.testing.assert_array_equal(taken, np.arange(1000))


def test_another_class_takes_the_options_that_it_shares(tmp_path):
    config = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "beta_end": 0.012}
    write(tmp_path, config)
    with pytest.raises(ValueError, match="PNDMScheduler"):
        diffusers.load_scheduler(tmp_path)
    schedule, *_ = diffusers.load_scheduler(tmp_path, "UniPCMultistepScheduler")
    assert float(schedule.betas[-1]) == pytest.approx(0.012)


def test_options_of_other_classes_are_left_out(tmp_path):
    """As diffusers ignores them: this is the configuration of SDXL."""
    config = {
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": "0.19.0.dev0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": None,
        "use_karras_sigmas": False,
    }
    schedule, kind, grid = diffusers.load_scheduler(write(tmp_path, config))
    assert kind == "noise"
    ts = grid(4)
    assert float(ts[-1]) == 0
    taken = [float(diffusers.timestep(schedule, t)) for t in ts[:-1]]
    assert taken == [751, 501, 251, 1]


@pytest.mark.slow
def test_options_are_those_of_diffusers():
    theirs = pytest.importorskip("diffusers")
    for name, scheduler in scheduler_options.SCHEDULERS.items():
        known = inspect.signature(getattr(theirs, name).__init__).parameters
        assert {*known} - {"self"} == {*scheduler.options}, name
        differing = {
            key: (option.default, known[key].default)
            for key, option in scheduler.options.items()
            if option.default != known[key].default
        }
        assert not differing or differing == {"disable_corrector": ((), [])}, name


UNSUPPORTED = {
    "thresholding": ("DDIM", {"thresholding": True}),
    "use_beta_sigmas": ("EulerDiscrete", {"use_beta_sigmas": True}),
    "use_flow_sigmas": ("UniPCMultistep", {"use_flow_sigmas": True}),
    "beta_schedule": ("DDIM", {"beta_schedule": "cubic"}),
    "timestep_spacing": ("DDIM", {"timestep_spacing": "even"}),
    "trained_betas": ("DDIM", {"trained_betas": [0.1, 0.2]}),
    "unheard_of": ("DDPM", {"unheard_of": 3}),
    "prediction_type": ("DDIM", {"rescale_betas_zero_snr": True}),
    "final_sigmas_type": ("DPMSolverMultistep", {"algorithm_type": "dpmsolver"}),
    "only one of": (
        "EulerDiscrete",
        {"use_karras_sigmas": True, "use_exponential_sigmas": True},
    ),
    "sigma_min": ("EDMEuler", {"sigma_min": 90.0}),
    "stochastic_sampling": ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}),
    "shift_terminal": ("FlowMatchEulerDiscrete", {"shift_terminal": "a"}),
    "solver_order": ("UniPCMultistep", {"solver_order": 2.0}),
    "beta_end": ("DDIM", {"beta_end": 1.5}),
}
"""The name that a message states -> class without "Scheduler", options."""


@pytest.mark.parametrize("named", UNSUPPORTED)
def test_an_unsupported_option_is_named(named, tmp_path):
    name, options = UNSUPPORTED[named]
    folder = write(tmp_path, {"_class_name": f"{name}Scheduler", **options})
    for read in (diffusers.load_scheduler, diffusers.solver):
        with pytest.raises(ValueError, match=named):
            read(folder)


def test_arguments_of_a_grid_are_checked(tmp_path):
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    *_, grid = diffusers.load_scheduler(
        write(tmp_path, {**flow, "use_dynamic_shifting": True})
    )
    with pytest.raises(ValueError, match=r"\bmu\b"):
        grid(4)
    *_, grid = diffusers.load_scheduler(write(tmp_path, flow))
    with pytest.raises(ValueError, match=r"\bmu\b"):
        grid(4, mu=1.0)
    with pytest.raises(ValueError, match="steps"):
        grid(0)
    shifted = write(tmp_path, {**flow, "shift_terminal": 0.1})
    *_, grid = diffusers.load_scheduler(shifted)
    with pytest.raises(ValueError, match="steps with shift_terminal"):
        grid(1)
    ddim = {"_class_name": "DDIMScheduler", "clip_sample": False, "steps_offset": 1}
    *_, grid = diffusers.load_scheduler(write(tmp_path, ddim))
    with pytest.raises(ValueError, match=r"grid\(steps\)"):
        grid(1000)  # its first timestep would be 1000


def test_options_of_the_denoiser_are_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="clip_sample"):
        diffusers.load_scheduler(write(tmp_path, {"_class_name": "DDPMScheduler"}))
    edm = {"_class_name": "EDMEulerScheduler", "sigma_data": 1.0}
    with pytest.warns(UserWarning, match="sigma_data"):
        diffusers.load_scheduler(write(tmp_path, edm))


def test_a_heun_scheduler_draws_no_noise(tmp_path):
    folder = write(tmp_path, {"_class_name": "HeunDiscreteScheduler"})
    schedule, _, grid = diffusers.load_scheduler(folder)
    problem = dj.solvers.diffusion(schedule, lambda x, t: 0.5 * x)
    settings = {"x": jnp.ones(2), "ts": grid(3)}
    solver = diffusers.solver(folder)
    assert dj.solvers.integrate(None, solver, problem, **settings).shape == (2,)


def test_a_learned_variance_has_no_solver_of_one_output(tmp_path):
    config = {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}
    with pytest.raises(ValueError, match="variance_type"):
        diffusers.solver(write(tmp_path, config))


WRITTEN = {
    "ddim": ("linear", "DDIMScheduler", {"clip_sample": False, "steps_offset": 1}),
    "dpm": ("trained", "DPMSolverMultistepScheduler", {"solver_order": 3}),
    "unipc": ("linear", "UniPCMultistepScheduler", {"timestep_spacing": "trailing"}),
    "euler": ("trained", "EulerDiscreteScheduler", {"use_karras_sigmas": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN)
def test_saved_schedulers_load_in_diffusers(name, tmp_path):
    """ᾱ and timesteps agree to the rounding of 100 factors in float32."""
    theirs = pytest.importorskip("diffusers")
    betas, class_name, settings = WRITTEN[name]
    chain = saved_chain(betas)
    diffusers.save_scheduler(
        tmp_path, chain, "noise", class_name=class_name, **settings
    )
    scheduler = getattr(theirs, class_name).from_pretrained(tmp_path)
    scheduler.set_timesteps(10)
    bars = np.asarray(scheduler.alphas_cumprod)
    np.testing.assert_allclose(chain.alpha_bars, bars, rtol=1e-5)
    schedule, _, grid = diffusers.load_scheduler(tmp_path)
    taken = jax.vmap(lambda t: diffusers.timestep(schedule, t))(grid(10)[:10])
    np.testing.assert_allclose(taken, np.asarray(scheduler.timesteps), atol=1e-3)
