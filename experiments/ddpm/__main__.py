"""Into how many bits does DDPM's discrete chain compress handwritten digits, and
which terms cost them?

    python -m experiments.ddpm
    python -m experiments.ddpm --objective hybrid --network dit --out runs/ddpm_hybrid
    python -m experiments.ddpm --betas cosine --chain-steps 200 --out runs/ddpm_cosine

Trains one denoiser on the chain x_1 … x_T and prints the bound on −log P(x) of
the test digits term by term for each variance of p(x_{t−1} | x_t): prior
matching L_T, denoising ΣL_{t−1}, and reconstruction L_0 by the discretised
Gaussian decoder. Beside it stand the score of the same network by the
probability flow and that of independent histograms.

Then it samples the chain, sends test digits progressively (rate against
distortion), and interpolates in latents. A run on the same OUT resumes.
Figures in OUT:

- samples.png: test digits, samples by all T steps and by fewer.
- bound.png: nats of each term L_{t−1} for each variance, and how they add up.
- rate_distortion.png: √mean squared error against bits sent, and both by
  index.
- progressive.png: some test digits at several indices: x_t, and x̂_0 = D(x_t).
- interpolation.png: between test digits through latents at several indices and
  through the probability flow.

Units: `prior`, `denoising`, `reconstruction`, `total` and names with
`bits_per_dim` are in bits per dimension. `gap` of `exact_gaps_nats` is in
nats, `frechet_distance` in squared units of the scaled data (images from −1 to
1), `seconds` in seconds. `test_nats_per_dim`, of data without levels, is in
nats per dimension.

Hardware and time: about 5 minutes on 2 CPU cores, a third of it training. The
bound of 447 digits over 1000 terms takes about half a minute.

Expect on digits a bound of 2.02 bits/dim with the optimal variance, 2.13 with
β̃ and 2.46 with β, all of it in the denoising terms. The flow has 1.98, the
histograms 2.42. Where the denoiser is exact, expect gaps at T = 1000 of 0,
0.44 nats (β̃) and 0.001 (β) on a Gaussian. For a mixture they fall as 1/T,
from 2.3 to 0.10.
"""

from typing import Any

import diffjax as dj
from diffjax import metrics
from experiments.ddpm import figures as ddpm_figures
from experiments.ddpm.bounds import bound_table, flow_score
from experiments.ddpm.config import Config
from experiments.ddpm.exact import exact_gaps
from experiments.ddpm.model import make_model, train
from experiments.ddpm.samples import (
    draw_samples,
    interpolations,
    progressive,
    rate_distortion,
)
from experiments.shared import cli, datasets, files, training


def check(config: Config) -> None:
    """Raise ValueError for flags that are not usable."""
    training.check(config)
    at_least = {
        1: ("chunk",),
        2: (
            "samples",
            "probes",
            "bound_examples",
            "chain_steps",
            "few_steps",
            "likelihood_steps",
        ),
    }
    for minimum, names in at_least.items():
        for name in names:
            if getattr(config, name) is not None:
                dj.checks.integer(name, getattr(config, name), minimum)
    # The last β of these tables, 20/T or 10/T, must be below 1.
    least = {"linear": 21, "sigmoid": 21, "constant": 11}.get(config.betas, 2)
    if config.chain_steps < least:
        raise ValueError(
            f"chain_steps must be at least {least} for betas {config.betas!r}, got "
            f"{config.chain_steps}"
        )
    dj.checks.integer("few_steps", config.few_steps, 2, config.chain_steps)


def run(config: Config) -> dict[str, Any]:
    """Train, bound, sample, compress and draw.

    Returns:
      The metrics, which are also in OUT/metrics.json.
    """
    check(config)
    data = datasets.open_dataset(
        config.data, config.held_out, config.seed, least_test=2
    )
    model = make_model(config, data)
    out = files.open_folder(config)
    print(f"{data.sizes} of shape {data.shape}")
    clock = cli.Clock()
    params, history = train(config, model, out)
    clock.lap("training")
    denoiser = model.denoiser(params)
    table, terms = bound_table(config, model, denoiser)
    clock.lap("bounds")
    results: dict[str, Any] = {"bound": table} | flow_score(config, model, params)
    results |= {"histogram_bits_per_dim": datasets.histogram_bits(data)}
    clock.lap("likelihood")
    results["exact_gaps_nats"] = exact_gaps(config) if config.exact else {}
    clock.lap("exact_denoisers")
    drawn = draw_samples(config, model, denoiser)
    results["frechet_distance"] = {
        name: float(metrics.frechet_distance(xs, data.test))
        for name, xs in drawn.items()
    }
    clock.lap("samples")
    curve = rate_distortion(config, model, denoiser)
    clock.lap("rate_distortion")
    training.draw_loss(
        history,
        f"loss, {config.objective}",
        f"Training, {config.data}",
        out / "loss.png",
    )
    ddpm_figures.draw_bound(terms, table, out)
    ddpm_figures.draw_rate_distortion(curve, data, out)
    if data.is_image:
        ddpm_figures.draw_samples(data, drawn, out)
        ddpm_figures.draw_progressive(
            data, curve, progressive(config, model, denoiser), out
        )
        ddpm_figures.draw_interpolations(
            data, interpolations(config, model, denoiser), out
        )
    clock.lap("figures")
    results["seconds"] = clock.laps
    files.write_results(out, results)
    print_table(config, results)
    return results


def print_table(config: Config, results: dict[str, Any]) -> None:
    """Print the bound by term, one row per variance, beside the scores of flow
    and histograms.
    """
    columns = ("prior", "denoising", "reconstruction", "total")
    print(
        f"\ntest bits/dim, T = {config.chain_steps}"
        + "".join(f"{name:>16}" for name in columns)
    )
    for name, row in results["bound"].items():
        print(
            f"{name:>{18 + len(str(config.chain_steps))}}"
            + "".join(f"{row[column]:16.4f}" for column in columns)
            + f" ± {row['total_standard_error']:.4f}"
            + f" ({row['examples']} examples, {row['seconds']} s)"
        )
    print(f"probability flow of the same network: {results['test_bits_per_dim']:.4f} "
          f"± {results['test_bits_per_dim_standard_error']:.4f}")  # fmt: skip
    print(
        f"independent histograms:               {results['histogram_bits_per_dim']:.4f}"
    )
    if results["exact_gaps_nats"]:
        print("\nexact denoisers in one dimension, bound + log p in nats by T:")
    for name, gaps in results["exact_gaps_nats"].items():
        cells = (
            f"{steps}: {row['gap']:.4f} ± {row['standard_error']:.4f}"
            for steps, row in gaps.items()
        )
        print(f"{name:>20}   " + "   ".join(cells))
    for name, distance in results["frechet_distance"].items():
        print(f"Fréchet distance to the test set, {name}: {distance:.3f}")


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
