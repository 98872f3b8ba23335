"""Trains a diffusion of images, with any data, network, objective and device.

    python -m experiments.train --preset patches32
    python -m experiments.train --preset cifar10 --data my_cifar10.npz
    python -m experiments.train --preset latents32 --data random --steps 50 \\
        --samples 0                                        (speed without data)

A preset gives the defaults of all flags, and any flag overrides it. `--preset
NAME --help` shows its values. Presets:

PRESETS

During training, OUT/metrics.jsonl gets a line every ten seconds, and every
`--evaluate-every` steps the loss of held-out images at fixed times and noise is
measured, a grid of samples is drawn to OUT/samples, and the checkpoint of the
least held-out loss is kept in OUT/best. A run on the same OUT resumes, bit for
bit on the same devices.

At the end samples are drawn beside test images, and their distance to these stands
beside that of training images. 8-bit images and images of fewer levels are scored in
bits/dim. `python -m experiments.evaluate --run OUT` measures the folder further.

Units: names with `bits_per_dim` are in bits per dimension, with `nats_per_dim` in nats
per dimension, with `frechet` in squared units of pixels from −1 to 1, `frechet_slope`
in these times images. `kernel` is a squared MMD. It, `precision`, `recall`, `density`,
`coverage` and losses have no unit. `seconds_<part>` is in seconds, `images_per_second`
in images per second. The rest are counts.

Hardware and time: patches32 within 30 minutes, digits_best within 25 on 2 CPU
cores. The others are published recipes for accelerators.
"""

from typing import Any

import jax
import numpy as np

from experiments.shared import cli, files, measures, sizes
from experiments.train import presets, records, report
from experiments.train.config import Config, check
from experiments.train.data import open_data
from experiments.train.evaluation import Evaluation
from experiments.train.loop import train
from experiments.train.model import make_model


def run(config: Config) -> dict[str, Any]:
    """Train, sample, measure and draw.

    Returns:
      The metrics, which are also in OUT/metrics.json.
    """
    clock = cli.Clock()
    check(config)
    records.check_tensorboard(config.tensorboard)
    data = open_data(config)
    model = make_model(config, data)
    out = files.open_folder(config)
    print(f"{data.sizes} of shape {data.shape}")
    sized = sizes.with_sizes(config, data)
    evaluation = Evaluation(sized, model, out)
    params, written = train(config, model, out, evaluation)
    clock.lap("training")
    report.draw_curves(config, written, out)
    results = report.finish(sized, model, params, evaluation, clock)
    best, lines = written.best(), [x for x in written.lines if "loss" in x]
    if best is not None:
        last = [line for line in written.lines if "held_out_loss" in line][-1]
        results |= {
            "held_out_loss": last["held_out_loss"],
            "best_held_out_loss": best["held_out_loss"],
            "best_step": best["step"],
        }
    rates = [x["images_per_second"] for x in lines if "images_per_second" in x]
    results |= {
        "final_loss": lines[-1]["loss"] if lines else None,
        "images_per_second": float(np.median(rates)) if rates else None,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        **{f"seconds_{name}": seconds for name, seconds in clock.laps.items()},
        "seconds_total": round(sum(clock.laps.values()), 1),
    }
    files.write_results(out, results)
    title = "distance to held-out images"
    cli.print_table(results.get("distances", {}), title, measures.UNITS)
    cli.print_results({k: v for k, v in results.items() if not isinstance(v, dict)})
    return results


if __name__ == "__main__":
    document = (__doc__ or "").replace("PRESETS", presets.described())
    cli.main(run, Config, document, defaults=presets.chosen)
