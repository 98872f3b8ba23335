"""Deterministic samplers of k-diffusion and diffusers on an exact mixture, for
`--peers`.

Needs numpy and, for measuring, torch with k-diffusion or diffusers. All runs
are in float64 as far as the libraries keep it. Some of diffusers' round their
state to float32, far below the errors seen here.
"""

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from experiments.shared.peers import k_diffusion_sampling
from experiments.shared.schedulers import run_scheduler

LIBRARIES = ("k_diffusion", "diffusers")
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0

torch: Any = (
    importlib.import_module("torch") if importlib.util.find_spec("torch") else None
)


class Peer(NamedTuple):
    """One run: evaluations as counted, root mean square error, mean square of
    each start.
    """

    library: str
    sampler: str
    grid: str
    budget: int
    nfe: int
    error: float
    squares: Any
    interval: Any = None


class OverBudget(Exception):
    """Raised when a run exceeds its evaluations."""


def missing() -> str | None:
    """The reason why this module cannot measure anything, None where it can."""
    if torch is None:
        return "torch is not installed"
    if not any(importlib.util.find_spec(library) for library in LIBRARIES):
        return "neither k-diffusion nor diffusers is installed"
    return None


def measure(
    mixture: dict,
    starts: np.ndarray,
    ends: np.ndarray,
    ends_at_zero: np.ndarray,
    budgets: tuple,
) -> list[Peer]:
    """Run every sampler on every grid of its library at each budget.

    Steps are as many as the budget allows. They are found by trial, since the
    model counts its calls.

    Args:
      mixture: Weights (K,), means (K, D), variances (K, D) or (K, 1).
      starts: (n, D) at σ = 80.
      ends: Where the exact flow carries them at σ = 0.002.
      ends_at_zero: Where it carries them at σ = 0.
      budgets: Evaluations.

    Returns:
      The runs.
    """
    model = Counted(mixture)
    x = torch.from_numpy(np.array(starts))
    truths = {"min": ends, "zero": ends_at_zero}
    peers = []
    for library, sampler, grid, end, runner in samplers():
        for budget in budgets:
            for steps in sorted(
                {budget // k + d for k in (1, 2, 3) for d in (1, 0)}, reverse=True
            ):
                model.calls, model.allowed = 0, budget
                try:
                    with torch.no_grad():
                        reached = runner(model, x, steps)
                except OverBudget:
                    continue
                squares = np.mean(
                    (np.asarray(reached, np.float64) - truths[end]) ** 2, -1
                )
                name = f"{grid}, to {'0' if end == 'zero' else 'sigma_min'}"
                error = math.sqrt(squares.mean())
                peers.append(
                    Peer(library, sampler, name, budget, model.calls, error, squares)
                )
                break
    return peers


class Counted:
    """The denoiser (x, σ) -> E[x_0 | x_0 + σ ε = x] of a mixture, counting its
    calls.

    x is a batch (n, D).
    """

    def __init__(self, mixture: dict):
        self.weights, self.means, self.variances = (
            torch.from_numpy(np.array(mixture[name], np.float64))
            for name in ("weights", "means", "variances")
        )
        self.calls, self.allowed = 0, 0

    def __call__(self, x: Any, sigma: Any) -> Any:
        """Σ_k r_k (m_k + v_k/(v_k + σ²) (x − m_k)) with posterior weights r.

        Raises OverBudget.
        """
        self.calls += 1
        if self.calls > self.allowed:
            raise OverBudget
        x = x.double()
        total = (
            self.variances
            + torch.as_tensor(sigma, dtype=torch.float64).reshape(-1)[0] ** 2
        )  # (K, D)
        apart = x[:, None] - self.means  # (n, K, D)
        logits = torch.log(self.weights) - 0.5 * (
            apart**2 / total + torch.log(total)
        ).sum(-1)
        return (
            torch.softmax(logits, -1)[..., None]
            * (self.means + self.variances / total * apart)
        ).sum(1)


Runner = Callable[[Any, Any, int], Any]
"""A function (model, x, steps) -> ends."""


def samplers() -> Iterator[tuple[str, str, str, str, Runner]]:
    """(library, sampler, grid, end: "min" or "zero", run) of the libraries that
    are installed.
    """
    if importlib.util.find_spec("k_diffusion"):
        yield from of_k_diffusion()
    if importlib.util.find_spec("diffusers"):
        yield from of_diffusers()


def of_k_diffusion() -> Iterator[tuple[str, str, str, str, Runner]]:
    """The samplers of k-diffusion without noise on its grids, which append a 0.

    They run with that step, or stop at sigma_min before it.
    """
    sampling = k_diffusion_sampling()
    if sampling is None:
        return
    families = {
        "karras": lambda n: sampling.get_sigmas_karras(n, SIGMA_MIN, SIGMA_MAX),
        "karras(3)": lambda n: sampling.get_sigmas_karras(
            n, SIGMA_MIN, SIGMA_MAX, rho=3.0
        ),
        "exponential": lambda n: sampling.get_sigmas_exponential(
            n, SIGMA_MIN, SIGMA_MAX
        ),
        "polyexponential(1.5)": lambda n: sampling.get_sigmas_polyexponential(
            n, SIGMA_MIN, SIGMA_MAX, rho=1.5
        ),
    }
    methods: dict[str, dict] = {
        "euler": {},
        "heun": {},
        "dpm_2": {},
        "lms": {},
        "dpmpp_2m": {},
        "dpmpp_2s_ancestral": {"eta": 0.0},
        "dpmpp_2m_sde": {"eta": 0.0},
        "dpmpp_3m_sde": {"eta": 0.0},
    }
    for method, keywords in methods.items():
        function = getattr(sampling, f"sample_{method}")
        for grid, family in families.items():
            for end in ("min", "zero"):
                if method == "lms" and end == "zero":
                    # Its integral to 0 is not the step to the denoised state.
                    continue

                def run(
                    model,
                    x,
                    steps,
                    function=function,
                    keywords=keywords,
                    family=family,
                    end=end,
                ):
                    sigmas = (
                        family(steps) if end == "zero" else family(steps + 1)[:-1]
                    ).double()
                    sigmas[0], sigmas[-1 if end == "min" else -2] = SIGMA_MAX, SIGMA_MIN
                    if steps == 1 and end == "zero":
                        raise OverBudget
                    return function(
                        lambda x, sigma: model(x, sigma),
                        x,
                        sigmas,
                        disable=True,
                        **keywords,
                    )

                yield "k_diffusion", method, grid, end, run

    def fast(model, x, steps):
        return sampling.sample_dpm_fast(
            lambda x, sigma: model(x, sigma),
            x,
            SIGMA_MIN,
            SIGMA_MAX,
            steps,
            disable=True,
        )

    yield "k_diffusion", "dpm_fast", "its own", "min", fast


def of_diffusers() -> Iterator[tuple[str, str, str, str, Runner]]:
    """The EDM schedulers of diffusers, and its DPM-Solver++, UniPC and DEIS on a
    chain.

    The chain's σ/α are those of the grid. The grids are those of diffusers,
    karras and exponential, computed in float64 from 80 to 0.002, since in
    float32 a chain's σ lose their digits at 0.002. "min" stops there instead
    of the last step of length 0 that diffusers would append.
    """
    try:
        diffusers: Any = importlib.import_module("diffusers")
    except ImportError as error:
        print(f"diffusers cannot be imported, no rows for it: {error}")
        return

    def grid_of(kind, steps, end):
        n = steps if end == "zero" else steps + 1
        u = torch.linspace(0, 1, n, dtype=torch.float64)
        power = 1 / 7
        sigmas = {
            "karras": (SIGMA_MAX**power + u * (SIGMA_MIN**power - SIGMA_MAX**power))
            ** 7,
            "exponential": torch.exp(
                math.log(SIGMA_MAX) + u * math.log(SIGMA_MIN / SIGMA_MAX)
            ),
        }[kind]
        return (
            sigmas
            if end == "min"
            else torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])
        )

    for sampler, config, ends in SCHEDULERS:
        scheduler = getattr(diffusers, f"{sampler}Scheduler")
        for kind in ("karras", "exponential"):
            for end in ends:

                def run(
                    model, x, steps, make=scheduler, config=config, kind=kind, end=end
                ):
                    if steps < 3:
                        raise OverBudget
                    sigmas = grid_of(kind, steps, end)
                    return run_scheduler(make, config, model, x=x, sigmas=sigmas)

                label = ", ".join(map(str, config.values()))
                name = f"{sampler}({label})" if label else sampler
                yield "diffusers", name, kind, end, run


BOTH_ENDS = ("min", "zero")
SCHEDULERS: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    ("EDMEuler", {}, BOTH_ENDS),
    *(
        (f"{family}DPMSolverMultistep", config, BOTH_ENDS)
        for family in ("EDM", "")
        for config in (
            {"solver_order": 2, "solver_type": "midpoint"},
            {"solver_order": 2, "solver_type": "heun"},
            {"solver_order": 3},
        )
    ),
    *(
        ("UniPCMultistep", {"solver_order": order, "solver_type": kind}, BOTH_ENDS)
        for order in (2, 3)
        for kind in ("bh1", "bh2")
    ),
    *(("DEISMultistep", {"solver_order": order}, ("min",)) for order in (2, 3)),
)
"""Schedulers of diffusers: name, settings, and the ends that they can reach."""
