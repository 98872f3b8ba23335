"""The figures of `guidance`: accuracy and distance against scale, samples per
class and scale.
"""

import matplotlib.pyplot as plt
import numpy as np

from experiments.shared.figures import image_grid, save_figure

TITLES = {
    "classifier_free": "classifier-free",
    "classifier": "by a classifier",
    "limited": "limited to an interval",
    "rescaled": "rescaled",
    "static_threshold": "static threshold",
    "dynamic_threshold": "dynamic threshold",
    "autoguidance": "autoguidance",
    "cfg_plus_plus": "CFG++, ddim",
    "ddim": "plain, ddim",
}
COLOURS = {"classifier_free": "#1f4e79", "classifier": "#c05020"}


def draw(data, rows, drawn, labels, real, out):
    """Draw accuracy.png, and where the examples are images samples.png and
    variants.png.
    """
    save_figure(draw_scores(rows, real), out / "accuracy.png")
    if not data.is_image:
        return
    limits = (float(data.train.min()), float(data.train.max()))
    classes = np.unique(labels)
    kinds = [kind for kind in COLOURS if any(key[0] == kind for key in drawn)]
    scales = sorted({scale for kind, scale in drawn if kind in kinds})
    figure, axes = plt.subplots(
        1,
        len(kinds),
        figsize=(0.55 * len(classes) * len(kinds) + 1.6, 0.57 * len(scales) + 1.3),
        squeeze=False,
        layout="constrained",
    )
    for axis, kind in zip(axes[0], kinds, strict=True):
        sets = {f"{scale:g}": xs for (k, scale), xs in drawn.items() if k == kind}
        mosaic(axis, sets, labels, classes, limits)
        axis.set_title(TITLES[kind])
        axis.set_ylabel("guidance scale γ")
    figure.suptitle("one sample per class and scale, each column from the same noise")
    save_figure(figure, out / "samples.png")

    variants = {
        TITLES[kind]: xs for (kind, _), xs in drawn.items() if kind not in COLOURS
    }
    if variants:
        scale = next(row["scale"] for row in rows if row["kind"] not in COLOURS)
        plain = {
            f"plain, γ = {g:g}": drawn["classifier_free", g]
            for g in (1.0, scale)
            if ("classifier_free", g) in drawn
        }
        figure, axis = plt.subplots(
            figsize=(0.6 * len(classes) + 2, 0.6 * (len(variants) + len(plain)) + 0.8),
            layout="constrained",
        )
        mosaic(axis, plain | variants, labels, classes, limits)
        axis.set_title(
            f"kinds of guidance at scale {scale:g}, each column from the same noise",
            fontsize=10,
        )
        save_figure(figure, out / "variants.png")


def mosaic(axis, sets, labels, classes, limits):
    """Draw the first sample of each class, one row per set and one column per
    class.
    """
    first = [int(np.argmax(labels == c)) for c in classes]
    images = np.concatenate([xs[first] for xs in sets.values()])
    image_grid(axis, images, len(classes), limits)
    height, width = images.shape[1] + 1, images.shape[2] + 1
    axis.set_axis_on()
    axis.set_yticks(height * np.arange(len(sets)) + height / 2 - 1, list(sets))
    axis.set_xticks(
        width * np.arange(len(classes)) + width / 2 - 1, [str(c) for c in classes]
    )
    axis.set_xlabel("requested class")
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def draw_scores(rows, real):
    """Draw the share recognised and the Fréchet distance against the scale.

    The distance of each variant is drawn too. Dotted lines are real examples.
    """
    figure, axes = plt.subplots(1, 2, figsize=(12.5, 4.4), layout="constrained")
    panels = (
        (
            axes[0],
            "accuracy",
            "recognised as the requested class (%)",
            100.0,
            real["judge_test_accuracy"],
            "test set",
            "recognised by an independent classifier",
        ),
        (
            axes[1],
            "frechet_distance",
            "Fréchet distance to the test set (data units²)",
            1.0,
            real["frechet_distance_train"],
            "as many training examples",
            "distance to the test set",
        ),
    )
    for axis, name, measure, unit, reference, who, title in panels:
        for kind, colour in COLOURS.items():
            shown = sorted(
                (row for row in rows if row["kind"] == kind),
                key=lambda row: row["scale"],
            )
            error = (
                [unit * row["accuracy_standard_error"] for row in shown]
                if name == "accuracy"
                else None
            )
            axis.errorbar(
                [row["scale"] for row in shown],
                [unit * row[name] for row in shown],
                error,
                marker="o",
                ms=5,
                capsize=3,
                color=colour,
                label=TITLES[kind],
            )
        axis.axhline(
            unit * reference, color="black", lw=0.8, ls=":", label=f"real: {who}"
        )
        axis.set(xlabel="guidance scale γ", ylabel=measure)
        axis.set_title(title)
        axis.set_xscale("symlog", base=2, linthresh=1)
        axis.set_xticks(sorted({row["scale"] for row in rows}))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(plt.NullLocator())
    variants = [row for row in rows if row["kind"] not in COLOURS]
    shades = plt.get_cmap("Dark2").colors
    for row, marker, shade in zip(variants, "sD^vPX*", shades, strict=False):
        place = row["scale"], row["frechet_distance"]
        axes[1].plot(
            *place,
            marker,
            color=shade,
            ms=9,
            mec="white",
            mew=0.7,
            ls="",
            label=TITLES[row["kind"]],
        )
    axes[0].legend(frameon=False, fontsize=9, loc="lower right")
    axes[1].legend(
        frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5)
    )
    for axis in axes:
        axis.set_ylim(bottom=0)
    return figure
