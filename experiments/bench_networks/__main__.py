"""Do our networks take less time than the same functions in PyTorch?

    python -m experiments.bench_networks [--quick] [--threads 1] [--networks dit]
        [--compiled] [--out DIR]

A U-Net of 6.5 M parameters maps 16 images of 32×32×3, and a DiT of 16.5 M maps 8 of
32×32×4, in float32. The rows are the forward pass, forward and backward with the
gradient by all parameters, and 20 steps of DDIM.

The peer is the same network in eager PyTorch with the same weights, whose images and
gradients must agree with ours. Both run in one process on the same cores, alternated
A B, B A, …. A ratio is the median of the pairs' ratios, less than 1 where we are
faster.

With `--compiled` the module of `torch.compile` is a second peer, which needs a C++
compiler and minutes. PyTorch is in the extra `peers`. Without it our own times are
measured alone.

Units: `seconds` and `peer_seconds` of one run are in seconds. `ratio` and its
`quartiles` are times over times and have no unit. `threads` is a count.

Hardware and time: about 4 minutes on 1 CPU core.

Expect, on one core of an AMD EPYC of 2.6 GHz beside PyTorch 2.13: for the U-Net 1.03
forward, 1.13 forward and backward, 1.06 sampling, and for the DiT 0.87, 1.04, 0.87. See
experiments/results/bench_networks.json.
"""

import dataclasses
import functools
import importlib.util
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import diffjax as dj
from diffjax import checks, grids, networks, predictions
from experiments.shared import cli, files, timing
from experiments.shared.figures import save_figure
from experiments.shared.timing import Program


@dataclasses.dataclass(frozen=True)
class Config:
    """Times of our networks, and their ratios to those of PyTorch."""

    out: pathlib.Path = pathlib.Path("runs/bench_networks")
    """Folder for config.json, metrics.json and ratios.png."""
    seed: int = 0
    """Seed of weights and images. No ratio should depend on it."""
    networks: tuple[str, ...] = ("unet", "dit")
    """Names of the networks to measure."""
    threads: int = 0
    """Cores that both sides run on. Default: all that this process may use."""
    alternations: int = 11
    """Pairs of runs behind each ratio, a quarter of them for the sampler."""
    steps: int = 20
    """Steps of the sampler."""
    compiled: bool = False
    """Whether torch.compile's module is a second peer."""
    quick: bool = False
    """Tiny networks, 2 steps and 1 alternation, whatever the other flags say. It shows
    that everything runs, and its ratios mean nothing.
    """


class Case(NamedTuple):
    """A network and its batch of images."""

    net: networks.UNet | networks.DiT
    batch: int
    shape: tuple[int, int, int]


class TimesRow(NamedTuple):
    """Medians of seconds and of their ratio. `peer` is empty for our times alone."""

    network: str
    program: str
    peer: str
    seconds: float
    peer_seconds: float | None = None
    ratio: float | None = None
    quartiles: tuple[float, float] | None = None


CASES = {
    "unet": Case(
        networks.UNet(
            width=64, multipliers=(1, 2, 2), blocks=2, attention_resolutions=(2,)
        ),
        16,
        (32, 32, 3),
    ),
    "dit": Case(networks.DiT(width=384, depth=6, heads=6), 8, (32, 32, 4)),
}
"""name -> the network that is measured."""

QUICK = {
    "unet": Case(networks.UNet(width=8, blocks=1), 2, (8, 8, 3)),
    "dit": Case(networks.DiT(width=16, depth=1), 2, (8, 8, 3)),
}

TOLERANCE = 1e-3
"""Largest relative difference to a peer: rounding of float32 over 20 steps."""


def run(config: Config) -> list[TimesRow]:
    """Measure every row, print the table, and write metrics.json and ratios.png.

    Returns:
      The rows.
    """
    message = f"networks must name at least one of {', '.join(CASES)}"
    checks.require(config.networks, message)
    for name in config.networks:
        checks.choice("networks", name, tuple(CASES))
    checks.integer("alternations", config.alternations, 1)
    checks.integer("steps", config.steps, 1)
    if config.quick:
        config = dataclasses.replace(config, alternations=1, steps=2)
    threads = use_cores(config.threads)
    out = files.start(config)
    cases = QUICK if config.quick else CASES
    rows: list[TimesRow] = []
    with cli.progress(len(config.networks), label="measuring", unit="network") as bar:
        for name in config.networks:
            bar.set_postfix_str(name)
            rows += measured(name, cases[name], config, threads)
            bar.update()
    files.write_results(out, report(rows, threads))
    save_figure(draw(rows), out / "ratios.png")
    print_rows(rows)
    return rows


def use_cores(threads: int) -> int:
    """Leave this process so many of its cores, and return their number.

    XLA starts one thread per core when it makes the first device.
    """
    cores = sorted(os.sched_getaffinity(0))
    threads = checks.integer("threads", threads, 0, len(cores)) or len(cores)
    if threads < len(cores):
        # The last ones, because the first core serves most interrupts.
        os.sched_setaffinity(0, cores[-threads:])
    return threads


# -------------------------------------------------------------------- programs


def measured(name: str, case: Case, config: Config, threads: int) -> Iterator[TimesRow]:
    """The rows of one network.

    Args:
      name: Of the network.
      case: The network and its batch.
      config: The flags.
      threads: Cores that PyTorch may use.

    Yields:
      A row per program and peer, or per program without PyTorch.
    """
    key = jax.random.key(config.seed)
    x = jax.random.normal(key, (case.batch, *case.shape))
    params = jax.jit(case.net.init)(key, x[0], 0.5)
    # Initially the output is exactly 0, so that nothing could be compared.
    leaves, treedef = jax.tree.flatten(params)
    moved = [
        leaf + 0.02 * jax.random.normal(jax.random.fold_in(key, i), leaf.shape)
        for i, leaf in enumerate(leaves)
    ]
    params = jax.tree.unflatten(treedef, moved)
    ours = programs(case.net, params, x, config.steps)
    peers = torch_programs(case.net, params, x, config, threads)
    for program, run_ours in ours.items():
        for peer, theirs in peers.items():
            times = compared(
                f"{name}, {program}, of {peer}",
                run_ours,
                theirs[program],
                turns(program, config),
            )
            yield TimesRow(name, program, peer, **times)
        if not peers:
            seconds = timing.alternated([run_ours], turns(program, config))
            yield TimesRow(name, program, "", float(np.median(seconds)))


def programs(net: Any, params: Any, x: jax.Array, steps: int) -> dict[str, Program]:
    """Our programs by name.

    Args:
      net: The network.
      params: Its parameters.
      x: Images, (batch, H, W, C).
      steps: Steps of the sampler.

    Returns:
      The forward pass, forward and backward, and the sampler.
    """
    t = jnp.full(len(x), 0.5)
    apply = jax.vmap(net.apply, (None, 0, 0))
    forward = jax.jit(apply)
    gradient = jax.jit(jax.grad(lambda params: jnp.mean(apply(params, x, t) ** 2)))
    schedule = dj.schedules.vp_linear()
    network = functools.partial(net.apply, params)
    denoiser = predictions.denoiser(schedule, network, "noise")

    def sampled() -> Any:
        return dj.sample_many(
            jax.random.key(0),
            len(x),
            denoiser,
            schedule,
            solver=dj.solvers.ddim(),
            grid=sampling_grid(schedule, steps),
            x_init=x,
        )

    return {
        "forward": lambda: forward(params, x, t),
        "forward + backward": lambda: gradient(params),
        f"{steps} steps of DDIM": sampled,
    }


def sampling_grid(schedule: Any, steps: int) -> jax.Array:
    """The times of the sampler. They end above zero noise.

    Args:
      schedule: The noise schedule.
      steps: Number of steps.

    Returns:
      Decreasing times, (steps + 1,).
    """
    return grids.log_snr(schedule, steps)


def torch_programs(
    net: Any, params: Any, x: jax.Array, config: Config, threads: int
) -> dict[str, dict[str, Program]]:
    """The same programs in PyTorch.

    Args:
      net: The network.
      params: Its parameters.
      x: Images, (batch, H, W, C).
      config: The flags.
      threads: Cores that PyTorch may use.

    Returns:
      Programs by name, by the name of the peer. Empty without PyTorch.
    """
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed (the extra `peers`): our own times alone")
        return {}
    from experiments.bench_networks import torch_peers as peers

    peers.torch.set_num_threads(threads)
    module = peers.twin(net, params, x.shape[1], x.shape[3])
    modules = {"torch": module}
    if config.compiled:
        modules["torch.compile"] = peers.torch.compile(module)
    schedule = dj.schedules.vp_linear()
    grid = sampling_grid(schedule, config.steps)
    alpha, sigma = (np.array(f(grid), float) for f in (schedule.alpha, schedule.sigma))
    a = alpha[1:] / alpha[:-1]
    b = sigma[1:] - a * sigma[:-1]
    steps = list(zip(a.tolist(), b.tolist(), strict=True))
    images, waves = peers.images(x), peers.times(net, jnp.full(len(x), 0.5))
    path = peers.times(net, grid[:-1])
    return {
        name: {
            "forward": peers.forward(module, images, waves),
            "forward + backward": peers.gradients(module, images, waves),
            f"{config.steps} steps of DDIM": peers.ddim(module, images, path, steps),
        }
        for name, module in modules.items()
    }


def compared(name: str, ours: Program, theirs: Program, count: int) -> dict[str, Any]:
    """Times of two programs.

    Args:
      name: Of the pair, for the message.
      ours: Our program.
      theirs: The same in PyTorch.
      count: Number of turns.

    Returns:
      The last fields of `TimesRow`.

    Raises:
      ValueError: If their images or gradients differ.
    """
    from experiments.bench_networks import torch_peers as peers

    first, second = peers.comparable(ours(), theirs())
    timing.same(name, lambda: first, lambda: second, TOLERANCE)
    times = timing.alternated([ours, theirs], count)
    seconds, peer_seconds = (float(median) for median in np.median(times, axis=0))
    ratio, quartiles = timing.summary(times[:, 0] / times[:, 1])
    return {
        "seconds": seconds,
        "peer_seconds": peer_seconds,
        "ratio": ratio,
        "quartiles": quartiles,
    }


def turns(program: str, config: Config) -> int:
    """The number of times that a program is timed.

    Args:
      program: Its name.
      config: The flags.

    Returns:
      The number of turns.
    """
    return -(-config.alternations // (4 if "DDIM" in program else 1))


# ---------------------------------------------------------------------- report


def report(rows: list[TimesRow], threads: int) -> dict[str, Any]:
    """The rows as JSON.

    Args:
      rows: The rows.
      threads: Cores that both sides ran on.

    Returns:
      The content of metrics.json.
    """
    return {"threads": threads, "rows": [row._asdict() for row in rows]}


def title(row: TimesRow) -> str:
    """The row's name: network, program and peer."""
    beside = f" against {row.peer}" if row.peer else ""
    return f"{row.network}, {row.program}{beside}"


def print_rows(rows: list[TimesRow]) -> None:
    """Print the table: seconds, seconds of the peer, ratio, quartiles."""
    width = max(len(title(row)) for row in rows)
    heads = f"{'seconds':>9}{'peer':>9}{'ratio':>8}{'quartiles':>15}"
    print(f"\n{'on ' + jax.devices()[0].device_kind:{width}}{heads}")
    for row in rows:
        line = f"{title(row):{width}}{row.seconds:9.3f}"
        if row.quartiles:
            low, high = row.quartiles
            spread = f"{low:.2f} … {high:.2f}"
            line += f"{row.peer_seconds:9.3f}{row.ratio:8.2f}{spread:>15}"
        print(line)


def draw(rows: list[TimesRow]) -> Any:
    """Draw the ratios with their quartiles, or our seconds where there is no peer."""
    figure, axis = plt.subplots(
        figsize=(7.5, 0.4 * len(rows) + 1.2), layout="constrained"
    )
    positions = np.arange(len(rows))[::-1]
    against = all(row.quartiles for row in rows)
    values = np.array([row.ratio if against else row.seconds for row in rows])
    spread = None
    if against:
        quartiles = np.array([row.quartiles for row in rows])
        spread = np.abs(quartiles - values[:, None]).T
    axis.barh(positions, values, xerr=spread, color="#5b8db8", height=0.62)
    axis.set_yticks(positions, [title(row) for row in rows], fontsize=9)
    if against:
        axis.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axis.set_xlabel("our time over the peer's (median, quartiles)" if against else "s")
    return figure


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
