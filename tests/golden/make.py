"""Makes the golden files: k-diffusion, diffusers, DPM-Solver, ER-SDE in float64.

    make golden  # python -m tests.golden.make with the extra `peers`, 5 s on two cores
    python -m tests.golden.make diffusers       # one file
    python -m tests.golden.make dpm_solver --source dpm_solver_pytorch.py  # no network
    python -m tests.golden.make er_sde --source er_sde_solver.py

The committed files were made by torch 2.13.0 (CPU), k-diffusion 0.1.1.post1,
diffusers 0.42.1, the official DPM-Solver at commit 52bc3fb and the official
ER-SDE at 25ca6c2. The last two are no packages: their one file is read from
--source or from GitHub, and its digest is checked. Each file stores the
versions that made it.

Of k-diffusion only `sampling.py` is imported, with its own imports. These suffice:
`pip install --no-deps k-diffusion torchdiffeq torchsde trampoline` and
`pip install torch diffusers scipy tqdm pillow safetensors`.

Every sampler gets the exact denoiser of one mixture of three isotropic
Gaussians in three dimensions, and starts from the same four points. They are
stored as problem/weights, means, scales and start. Noise is drawn here and
handed to the sampler, so that a run can be repeated draw by draw.

Under SAMPLER/GRID a file has
    out    (4, 3): the end of the run
    path   (steps + 1, 4, 3): the state before each step, and the end. Absent where the
           sampler does not show it.
    noise  (calls, 4, 3): the draws, in the sampler's order. Absent where it adds none.
and the grids themselves under grid/….

k_diffusion: α = 1. "plain" ends at a non-zero σ, "zero" at 0. diffusers: a
chain of 50 betas (chain/betas, chain/alpha_bars), eight 0-based timesteps.
"plain" stops after seven steps, "zero" takes the eighth, to σ = 0. dpm_solver:
linear β from 0.1 to 20, six steps uniform in log-SNR from t = 1 to 0.01.
er_sde: "plain" of k_diffusion. "vp" has linear β and six even steps from t =
0.9 to 0.1.
"""

import argparse
import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import pathlib
import sys
import tempfile
import types
import urllib.request
import zlib

import numpy as np
import torch

from experiments.shared.peers import k_diffusion_sampling

FOLDER = pathlib.Path(__file__).parent
BATCH, DIMENSION = 4, 3

WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = np.array([[-1.2, 0.4, 0.8], [0.9, -0.7, 0.1], [0.2, 1.1, -0.9]])
SCALES = np.array([0.35, 0.5, 0.25])

ER_SDE_COMMIT = "25ca6c2e6b065754a55694dc6941a3259fa0f082"
ER_SDE_URL = f"https://raw.githubusercontent.com/QinpengCui/ER-SDE-Solver/{ER_SDE_COMMIT}/er_sde_solver.py"
ER_SDE_SHA256 = "ab03539a9ee69cb1a16118052381213a9ec6d904ff1dac383ade6cc52b584f35"

DPM_SOLVER_COMMIT = "52bc3fbcd5de56d60917b826b15d2b69460fc2fa"
DPM_SOLVER_URL = f"https://raw.githubusercontent.com/LuChengTHU/dpm-solver/{DPM_SOLVER_COMMIT}/dpm_solver_pytorch.py"
DPM_SOLVER_SHA256 = "673c59fd6ec4ce40f339d7335bc00711552cf87ea15acfa3548f5dcca026d9d2"


# -------------------------------------------------------------------------- the problem


def denoiser(x, alpha, sigma):
    """The exact denoiser of the mixture at x (B, D), with α and σ of shape ()
    or (B,).

        E[x0 | α x0 + σ ε = x] = Σ_k r_k (m_k + α s_k²/v_k (x − α m_k))

    where v_k = α² s_k² + σ². The responsibilities r_k are the softmax of log
    w_k − |x − α m_k|²/(2 v_k) − D/2 log v_k.
    """
    weights, means, scales = (
        torch.as_tensor(values) for values in (WEIGHTS, MEANS, SCALES)
    )
    alpha, sigma = (
        torch.as_tensor(value, dtype=torch.float64).reshape(-1, 1)
        for value in (alpha, sigma)
    )
    variances = alpha**2 * scales**2 + sigma**2  # (B or 1, K)
    apart = x[:, None] - alpha[:, :, None] * means  # (B, K, D)
    logits = (
        torch.log(weights)
        - (apart**2).sum(-1) / (2 * variances)
        - 0.5 * DIMENSION * torch.log(variances)
    )
    posterior_means = means + (alpha * scales**2 / variances)[:, :, None] * apart
    return (torch.softmax(logits, -1)[:, :, None] * posterior_means).sum(1)


def noise_prediction(x, alpha, sigma):
    """(x − α D)/σ."""
    return (x - alpha * denoiser(x, alpha, sigma)) / sigma


def problem():
    """The mixture and the four starts, in units of the noise at the start."""
    start = np.random.default_rng(0).normal(size=(BATCH, DIMENSION))
    return {
        "problem/weights": WEIGHTS,
        "problem/means": MEANS,
        "problem/scales": SCALES,
        "problem/start": start,
    }


class Draws:
    """Standard normal noise of the batch's shape, seeded by the run's name,
    and kept.
    """

    def __init__(self, name):
        self.generator = np.random.default_rng(zlib.crc32(name.encode()))
        self.drawn = []

    def __call__(self, *args, **kwargs):
        """The next draw, whatever the sampler passes to say for which interval."""
        self.drawn.append(self.generator.normal(size=(BATCH, DIMENSION)))
        return torch.from_numpy(self.drawn[-1])


def entry(name, out, path=None, draws=None):
    """The arrays of one run, without the draws of a sampler that multiplies
    them by 0 (its name ends so). Raises ValueError for a result that is not
    finite float64.
    """
    arrays = {"out": out, "path": None if path is None else np.stack(path)}
    arrays = {
        key: np.asarray(value) for key, value in arrays.items() if value is not None
    }
    for key, value in arrays.items():
        if value.dtype != np.float64 or not np.all(np.isfinite(value)):
            raise ValueError(
                f"{name}/{key} must be finite float64, got {value.dtype}: {value}"
            )
    if draws is not None and draws.drawn and not name.split("/")[0].endswith("_0.0"):
        arrays["noise"] = np.stack(draws.drawn)
    return {f"{name}/{key}": value for key, value in arrays.items()}


def versions(*packages):
    """name version of each package, as strings."""
    return {
        "versions": np.array(
            [
                f"{name} {importlib.metadata.version(name)}"
                for name in ("torch", *packages)
            ]
        )
    }


# -------------------------------------------------------------------------- k-diffusion


def karras(steps, sigma_min, sigma_max, rho=7.0):
    """σ_i = (σ_max^{1/ρ} + (i/N)(σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ, shape (steps + 1,)."""
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return np.linspace(*ends, steps + 1) ** rho


CHURN = dict(s_churn=3.0, s_tmin=0.1, s_tmax=10.0, s_noise=1.003)

K_DIFFUSION = {
    "euler": ("sample_euler", {}),
    "heun": ("sample_heun", {}),
    "dpm_2": ("sample_dpm_2", {}),
    **{f"lms_{order}": ("sample_lms", dict(order=order)) for order in (1, 2, 3, 4)},
    "dpmpp_2m": ("sample_dpmpp_2m", {}),
    **{
        f"dpmpp_2s_ancestral_{eta}": ("sample_dpmpp_2s_ancestral", dict(eta=eta))
        for eta in (0.0, 0.5, 1.0)
    },
    **{
        f"dpmpp_sde_{eta}": ("sample_dpmpp_sde", dict(eta=eta, r=0.5))
        for eta in (0.0, 0.5, 1.0)
    },
    **{
        f"dpmpp_2m_sde_{kind}_{eta}": (
            "sample_dpmpp_2m_sde",
            dict(eta=eta, solver_type=kind),
        )
        for kind in ("midpoint", "heun")
        for eta in (0.0, 0.5, 1.0)
    },
    **{
        f"dpmpp_3m_sde_{eta}": ("sample_dpmpp_3m_sde", dict(eta=eta))
        for eta in (0.0, 0.5, 1.0)
    },
    **{
        f"euler_ancestral_{eta}": ("sample_euler_ancestral", dict(eta=eta))
        for eta in (0.0, 0.5, 1.0)
    },
    **{
        f"dpm_2_ancestral_{eta}": ("sample_dpm_2_ancestral", dict(eta=eta))
        for eta in (0.0, 0.5, 1.0)
    },
    "euler_churn": ("sample_euler", CHURN),
    "heun_churn": ("sample_heun", CHURN),
}
"""name -> (function of k_diffusion.sampling, its keywords)."""

PLAIN_ONLY = {"lms_2", "lms_3", "lms_4"}
"""Samplers that keep their order on a step to 0, where others return the
denoiser.
"""


@contextlib.contextmanager
def replaced(owner, name, value):
    """owner.name is value for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def k_diffusion():
    """Samplers with α = 1 and time σ.

    A churned sampler draws at every step, uses the draw where σ lies in
    [s_tmin, s_tmax], and shows its state with the noise added: no path.
    """
    sampling = k_diffusion_sampling()
    plain = karras(10, 0.05, 20.0)
    grids = {"plain": plain, "zero": np.append(plain[:-1], 0.0)}
    files = {
        **problem(),
        **{f"grid/{name}": grid for name, grid in grids.items()},
        **versions("k-diffusion"),
    }
    for sampler, (function, keywords) in K_DIFFUSION.items():
        for grid, sigmas in grids.items():
            if grid == "zero" and sampler in PLAIN_ONLY:
                continue
            name = f"{sampler}/{grid}"
            draws, path = Draws(name), []
            by_argument = "eta" in keywords
            start = torch.from_numpy(sigmas[0] * files["problem/start"])
            with replaced(
                torch,
                "randn_like",
                draws if "s_churn" in keywords else torch.randn_like,
            ):
                out = getattr(sampling, function)(
                    lambda x, sigma: denoiser(x, 1.0, sigma),
                    start,
                    torch.from_numpy(sigmas),
                    callback=lambda info, path=path: path.append(info["x"].numpy()),
                    disable=True,
                    **(dict(noise_sampler=draws) if by_argument else {}),
                    **keywords,
                )
            shown = None if "s_churn" in keywords else [*path, out.numpy()]
            files |= entry(name, out.numpy(), shown, draws)
    return files


# ---------------------------------------------------------------------------- diffusers


BETAS = np.linspace(0.002, 0.3, 50)
ALPHA_BARS = np.cumprod(1 - BETAS)
TIMESTEPS = np.array([49, 40, 32, 25, 18, 11, 5, 1])  # 0-based indices of the chain
NO_DROP = dict(lower_order_final=False)
SIGMA_MIN = dict(
    final_sigmas_type="sigma_min"
)  # algorithms in the noise prediction raise for "zero"
BRACKETS = ("midpoint", "heun")
EXACT_SA = "SA-Solver with the paper's weights at order 2 too"


def _multistep(algorithm, order, kind="midpoint", **keywords):
    return "DPMSolverMultistepScheduler", dict(
        algorithm_type=algorithm,
        solver_order=order,
        solver_type=kind,
        euler_at_final=False,
        use_karras_sigmas=False,
        **NO_DROP,
        **keywords,
    )


def _sa_solver(predictor, corrector, tau):
    return "SASolverScheduler", dict(
        predictor_order=predictor,
        corrector_order=corrector,
        algorithm_type="data_prediction",
        tau_func=lambda t: torch.tensor(tau, dtype=torch.float64),
        **NO_DROP,
    )


DIFFUSERS = {
    **{f"ddim_{eta}": ("DDIMScheduler", dict(eta=eta)) for eta in (0.0, 0.5, 1.0)},
    **{
        f"ddpm_{kind}": ("DDPMScheduler", dict(variance_type=kind))
        for kind in ("fixed_small", "fixed_large")
    },
    "dpmpp_multistep_1": _multistep("dpmsolver++", 1),
    **{
        f"dpmpp_multistep_2_{kind}": _multistep("dpmsolver++", 2, kind)
        for kind in BRACKETS
    },
    "dpmpp_multistep_3": _multistep("dpmsolver++", 3),
    **{
        f"dpm_multistep_2_{kind}": _multistep("dpmsolver", 2, kind, **SIGMA_MIN)
        for kind in BRACKETS
    },
    "dpm_multistep_3": _multistep("dpmsolver", 3, **SIGMA_MIN),
    "sde_dpmpp_multistep_1": _multistep("sde-dpmsolver++", 1),
    **{
        f"sde_dpmpp_multistep_2_{kind}": _multistep("sde-dpmsolver++", 2, kind)
        for kind in BRACKETS
    },
    "sde_dpmpp_multistep_3": _multistep("sde-dpmsolver++", 3),
    **{
        f"unipc_{order}_{kind}": (
            "UniPCMultistepScheduler",
            dict(
                solver_order=order,
                solver_type=kind,
                predict_x0=True,
                disable_corrector=[],
                **NO_DROP,
            ),
        )
        for kind in ("bh1", "bh2")
        for order in (1, 2, 3)
    },
    **{
        f"deis_{order}": (
            "DEISMultistepScheduler",
            dict(
                solver_order=order,
                algorithm_type="deis",
                solver_type="logrho",
                **NO_DROP,
            ),
        )
        for order in (1, 2, 3)
    },
    "ipndm": ("IPNDMScheduler", {}),
    **{
        f"sa_solver_{predictor}_{corrector}_{tau}": _sa_solver(
            predictor, corrector, tau
        )
        for predictor, corrector in ((1, 1), (2, 2), (3, 3), (3, 4))
        for tau in (0.0, 1.0)
    },
    **{
        f"sa_solver_exact_{predictor}_{corrector}_{tau}": (
            EXACT_SA,
            _sa_solver(predictor, corrector, tau)[1],
        )
        for predictor, corrector in ((2, 2), (3, 3), (3, 4))
        for tau in (0.0, 1.0)
    },
}
"""name -> (scheduler, its configuration, with ddim's eta)."""

SINGLESTEP = {
    f"{name}_singlestep_{order}_{kind}": dict(
        algorithm_type=algorithm,
        solver_order=order,
        solver_type=kind,
        **NO_DROP,
        **SIGMA_MIN,
    )
    for name, algorithm in (("dpm", "dpmsolver"), ("dpmpp", "dpmsolver++"))
    for order, kinds in ((2, BRACKETS), (3, BRACKETS))
    for kind in kinds
}
"""name -> configuration.

An outer step of order p takes p steps of the grid, which is uniform in
log-SNR: r = i/p.
"""

ZERO_END = {
    "ddim_0.0",
    "ddim_0.5",
    "ddim_1.0",
    "dpmpp_multistep_1",
    "dpmpp_multistep_2_midpoint",
    "dpmpp_multistep_3",
}
"""Samplers whose eighth step, to σ = 0, is stored too.

Elsewhere it is not defined without dropping orders before it.
"""


class Double:
    """A module whose float32 is float64, so that a scheduler written for
    float32 computes in float64 throughout.
    """

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, "float64" if name == "float32" else name)


def scheduler_class(name):
    """A scheduler of diffusers, or its SA-Solver without a term that it adds.

    It adds O(h³) to the weights of two outputs, in the updates of the predictor and of
    the corrector, under an `if order == 2`.
    """
    if name != EXACT_SA:
        return getattr(importlib.import_module("diffusers"), name)
    original = importlib.import_module("diffusers.schedulers.scheduling_sasolver")
    pieces = inspect.getsource(original).split("order == 2\n            ):")
    if len(pieces) != 3:
        raise ValueError(
            "diffusers' SA-Solver must have its addition at 2 places, got "
            f"{len(pieces) - 1}"
        )
    module = types.ModuleType(f"{original.__package__}.scheduling_sasolver_exact")
    module.__package__ = original.__package__
    sys.modules[module.__name__] = module
    exec(
        compile("False\n            ):".join(pieces), module.__name__, "exec"),
        module.__dict__,
    )
    return module.SASolverScheduler


@contextlib.contextmanager
def double_precision(cls, draws):
    """The module of a scheduler's class, computing in float64 and drawing its
    noise from `draws`.
    """
    module = importlib.import_module(cls.__module__)
    with contextlib.ExitStack() as stack:
        for name, value in (
            ("torch", Double(torch)),
            ("np", Double(np)),
            ("randn_tensor", draws),
        ):
            if hasattr(module, name):
                stack.enter_context(replaced(module, name, value))
        yield


def made(cls, keywords):
    """A scheduler of the chain for noise predictions, without clipping or
    thresholding.
    """
    accepted = inspect.signature(cls.__init__).parameters
    common = dict(
        num_train_timesteps=len(BETAS),
        trained_betas=None
        if cls.__name__ == "IPNDMScheduler"
        else BETAS.tolist(),  # its own table is overwritten
        prediction_type="epsilon",
        clip_sample=False,
        thresholding=False,
        set_alpha_to_one=True,
    )
    return cls(
        **{name: value for name, value in common.items() if name in accepted},
        **keywords,
    )


def prepare(scheduler, timesteps, sigmas):
    """Give the scheduler its timesteps, and σ/α at each of them and at the end
    of the last step.

    DDIM reads the chain's table at each timestep, DDPM between its own list of
    timesteps, IPNDM a table of signal and noise scales (`alphas`, `betas`),
    the others σ/α alone.
    """
    if type(scheduler).__name__ == "DDPMScheduler":
        scheduler.set_timesteps(timesteps=timesteps.tolist())
        return
    scheduler.set_timesteps(len(timesteps))
    scheduler.timesteps = torch.from_numpy(timesteps)
    scales = 1 / np.sqrt(1 + sigmas**2)
    if type(scheduler).__name__ == "IPNDMScheduler":
        scheduler.alphas, scheduler.betas = (
            torch.from_numpy(scales),
            torch.from_numpy(sigmas * scales),
        )
    elif hasattr(scheduler, "sigmas"):
        scheduler.sigmas = torch.from_numpy(sigmas)


def ddim_step(scheduler, output, i, x, eta, draws):
    """One step of the DDIM scheduler.

    All its steps have one length, num_train_timesteps // num_inference_steps. So the
    distance to the next timestep, or to one before the first index, is set each time.
    """
    ahead = [*scheduler.timesteps.tolist(), -1]
    scheduler.num_inference_steps = 1
    scheduler.register_to_config(num_train_timesteps=ahead[i] - ahead[i + 1])
    noise = draws() if eta else None
    return scheduler.step(
        output, ahead[i], x, eta=eta, variance_noise=noise, return_dict=False
    )[0]


def run_scheduler(cls, keywords, timesteps, sigmas, steps, start, draws):
    """The states before each of `steps` steps and after the last, and the scheduler."""
    eta = keywords.get("eta")
    path = [torch.from_numpy(start)]
    with double_precision(cls, draws):
        scheduler = made(
            cls, {name: value for name, value in keywords.items() if name != "eta"}
        )
        prepare(scheduler, timesteps, sigmas)
        for i in range(steps):
            x = path[-1]
            alpha = 1 / np.sqrt(1 + sigmas[i] ** 2)
            output = noise_prediction(x, alpha, sigmas[i] * alpha)
            if cls.__name__ == "IPNDMScheduler":
                output = alpha * output - sigmas[i] * alpha * denoiser(
                    x, alpha, sigmas[i] * alpha
                )  # it takes v
            if cls.__name__ == "DDIMScheduler":
                path.append(ddim_step(scheduler, output, i, x, eta, draws))
            else:
                path.append(
                    scheduler.step(
                        output, scheduler.timesteps[i], x, return_dict=False
                    )[0]
                )
    return [x.numpy() for x in path], scheduler


def ddim_by_formula(start, sigmas):
    """x ← σ_s/σ_t x + (α_s − α_t σ_s/σ_t) D, with σ/α given: what DDIM with
    η = 0 must give to rounding.
    """
    x = torch.from_numpy(start)
    alphas = 1 / np.sqrt(1 + sigmas**2)
    for i in range(len(sigmas) - 1):
        ratio = sigmas[i + 1] * alphas[i + 1] / (sigmas[i] * alphas[i])
        x = ratio * x + (alphas[i + 1] - alphas[i] * ratio) * denoiser(
            x, alphas[i], sigmas[i] * alphas[i]
        )
    return x.numpy()


def diffusers():
    """Schedulers of diffusers on a chain of 50 betas, all their tables in float64."""
    ratio = np.sqrt((1 - ALPHA_BARS) / ALPHA_BARS)
    sigmas = np.append(ratio[TIMESTEPS], 0.0)
    fine = np.exp(np.linspace(*np.log(sigmas[[0, -2]]), 7))
    files = {
        **problem(),
        **versions("diffusers"),
        "chain/betas": BETAS,
        "chain/alpha_bars": ALPHA_BARS,
        "grid/timesteps": TIMESTEPS,
        "grid/singlestep_sigmas": fine,
    }
    start = files["problem/start"] * np.sqrt(1 - ALPHA_BARS[TIMESTEPS[0]])
    for name, (scheduler, keywords) in DIFFUSERS.items():
        draws = Draws(name)
        cls, steps = scheduler_class(scheduler), len(TIMESTEPS) - (name not in ZERO_END)
        path, _ = run_scheduler(cls, keywords, TIMESTEPS, sigmas, steps, start, draws)
        files |= entry(f"{name}/plain", path[7], path[:8], draws)
        if name in ZERO_END:
            files |= entry(f"{name}/zero", path[8], path, draws)
    for name, keywords in SINGLESTEP.items():
        cls = scheduler_class("DPMSolverSinglestepScheduler")
        path, made_with = run_scheduler(
            cls, keywords, TIMESTEPS[:6], fine, 6, start, Draws(name)
        )
        files |= {
            **entry(f"{name}/plain", path[-1], path),
            f"{name}/plain/orders": np.array(made_with.order_list),
        }
    for name in (
        "ddim_0.0",
        "dpmpp_multistep_1",
    ):  # float64 throughout, by two ways through the library
        np.testing.assert_allclose(
            files[f"{name}/zero/out"], ddim_by_formula(start, sigmas), rtol=1e-12
        )
    np.testing.assert_allclose(
        files["deis_1/plain/out"], ddim_by_formula(start, sigmas[:-1]), rtol=1e-12
    )
    return files


# --------------------------------------------------------------------------- DPM-Solver


def official(url, sha256, source):
    """An official module of one file, from a file here or from GitHub.

    Raises ValueError where it is not the one of the commit.
    """
    if source is None:
        with urllib.request.urlopen(url, timeout=60) as response:
            text = response.read()
    else:
        text = pathlib.Path(source).read_bytes()
    digest = hashlib.sha256(text).hexdigest()
    if digest != sha256:
        raise ValueError(f"source must be {url} with sha256 {sha256}, got {digest}")
    name = pathlib.PurePosixPath(url).stem
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / f"{name}.py"
        path.write_bytes(text)
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def dpm_solver(source=None):
    """The official singlestep and multistep methods of orders 1, 2, 3, both
    algorithms.

    Their Taylor variants too. Each takes six steps uniform in log-SNR, with no
    order dropped at the end. A singlestep method of order p evaluates p times
    per step, at i/p of it in log-SNR.
    """
    module = official(DPM_SOLVER_URL, DPM_SOLVER_SHA256, source)
    schedule = module.NoiseScheduleVP(
        "linear", continuous_beta_0=0.1, continuous_beta_1=20.0
    )
    files = {**problem(), **versions()}
    files["versions"] = np.append(files["versions"], f"dpm-solver {DPM_SOLVER_COMMIT}")

    def model(x, t):
        return noise_prediction(
            x, schedule.marginal_alpha(t)[:, None], schedule.marginal_std(t)[:, None]
        )

    for algorithm, prefix in (("dpmsolver", "dpm"), ("dpmsolver++", "dpmpp")):
        solver = module.DPM_Solver(model, schedule, algorithm_type=algorithm)
        files["grid/ts"] = solver.get_time_steps("logSNR", 1.0, 0.01, 6, "cpu").numpy()
        for method, order, kind in itertools.product(
            ("singlestep", "multistep"), (1, 2, 3), ("dpmsolver", "taylor")
        ):
            if (order, kind) == (1, "taylor"):
                continue
            single = method == "singlestep"
            out, path = solver.sample(
                torch.from_numpy(files["problem/start"]),
                steps=6 * order if single else 6,
                t_start=1.0,
                t_end=0.01,
                order=order,
                skip_type="logSNR",
                method="singlestep_fixed" if single else "multistep",
                lower_order_final=False,
                solver_type=kind,
                return_intermediate=True,
            )
            path = ([torch.from_numpy(files["problem/start"])] if single else []) + path
            name = f"{prefix}_{method}_{order}" + (
                "_taylor" if kind == "taylor" else ""
            )
            files |= entry(f"{name}/plain", out.numpy(), [x.numpy() for x in path])
    return files


# ------------------------------------------------------------------------------- ER-SDE

SCALES_OF_NOISE = {"0.0": 1, "1.0": 2, "paper": 7}
"""η, or the paper's choice -> number of the official function φ."""


def with_exact_sums(phi):
    """φ, whose values at the nodes of a Riemann sum make that sum exact.

    The official sums approximate ∫ dρ/φ and ∫ (ρ − ρ_t)/φ dρ by 100 nodes. Here
    1/φ at the nodes is the linear function whose sums are these integrals.
    """
    points, weights = np.polynomial.legendre.leggauss(64)

    def adjusted(rho):
        if rho.ndim == 0:
            return phi(rho)
        end, start = rho[0], rho[0] + len(rho) * (rho[1] - rho[0])
        log = torch.log(start / end)
        fine = end * torch.exp(log * torch.from_numpy(0.5 * (1 + points)))
        parts = torch.from_numpy(0.5 * weights) * log * fine / phi(fine)
        integrals = torch.stack([parts.sum(), (parts * (fine - start)).sum()])
        away = rho - start
        powers = torch.stack([(away**k).mean() for k in range(3)])
        matrix = torch.stack([powers[:2], powers[1:]])
        level, slope = torch.linalg.solve(matrix, integrals / (start - end))
        return 1 / (level + slope * away)

    return adjusted


def er_sde(source=None):
    """The official methods of orders 1 to 3 for three noise scale functions.

    Its `np` is torch here, since it mixes arrays of both. The model is given a
    step's number for its time.
    """
    module = official(ER_SDE_URL, ER_SDE_SHA256, source)
    module.np = torch
    ts = np.linspace(0.9, 0.1, 7)
    alphas = np.exp(-0.25 * ts**2 * 19.9 - 0.05 * ts)
    ve = karras(10, 0.05, 20.0)
    levels = {
        "plain": (np.ones_like(ve), ve),
        "vp": (alphas, np.sqrt(1 - alphas**2)),
    }
    files = {**problem(), "grid/plain": ve, "grid/vp": ts, **versions()}
    files["versions"] = np.append(files["versions"], f"er-sde {ER_SDE_COMMIT}")
    for grid, (alpha, sigma) in levels.items():
        kind = "vp" if grid == "vp" else "ve"
        solver = module.ER_SDE_Solver(kind, "x_start")
        alpha, sigma = torch.from_numpy(alpha), torch.from_numpy(sigma)
        model = lambda x, i, alpha=alpha, sigma=sigma: denoiser(x, alpha[i], sigma[i])
        size = 1.0 if grid == "vp" else sigma[0]
        start = size * torch.from_numpy(files["problem/start"])
        noise_levels = (alpha, sigma) if grid == "vp" else (sigma,)
        for order, (label, number) in itertools.product(
            (1, 2, 3), SCALES_OF_NOISE.items()
        ):
            method = f"{kind}_{order}_order" + ("" if order == 1 else "_taylor")
            name = f"er_sde_{order}_{label}/{grid}"
            phi = with_exact_sums(
                lambda rho, number=number: module.customized_func(rho, number)
            )
            draws = Draws(name)
            with replaced(torch, "randn_like", draws):
                out = getattr(solver, method)(
                    model,
                    start,
                    *noise_levels,
                    range(len(sigma)),
                    **{"fn_lambda" if grid == "vp" else "fn_sigma": phi},
                )
            files |= entry(name, out.numpy(), draws=draws)
    return files


def main():
    """Make the files named on the command line, or all four."""
    makers = {
        "k_diffusion": k_diffusion,
        "diffusers": diffusers,
        "dpm_solver": dpm_solver,
        "er_sde": er_sde,
    }
    parser = argparse.ArgumentParser(
        prog="python -m tests.golden.make", description=main.__doc__
    )
    parser.add_argument(
        "files", nargs="*", metavar="file", help=f"{', '.join(makers)}; all by default"
    )
    parser.add_argument(
        "--source",
        help="dpm_solver_pytorch.py or er_sde_solver.py of the commit, where that file "
        "alone is made; from GitHub by default",
    )
    arguments = parser.parse_args()
    unknown = set(arguments.files) - set(makers)
    if unknown:
        parser.error(
            f"files must be among {', '.join(makers)}, got {', '.join(sorted(unknown))}"
        )
    torch.set_default_dtype(torch.float64)
    for name in arguments.files or makers:
        official_file = name in ("dpm_solver", "er_sde")
        files = makers[name](*[arguments.source] * official_file)
        path = FOLDER / f"{name}.npz"
        np.savez_compressed(path, **files)
        print(
            f"{path}: {len(files)} arrays, {path.stat().st_size / 1000:.0f} kB; "
            f"{', '.join(files['versions'])}"
        )


if __name__ == "__main__":
    main()
