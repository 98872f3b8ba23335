"""What every experiment does alike: flags, config.json and metrics.json in OUT, progress, figures."""

import dataclasses
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import tqdm  # noqa: E402
import tyro  # noqa: E402

Config = TypeVar("Config")

COMPILATION_CACHE = pathlib.Path(__file__).parents[1] / ".xla_cache"


def main(run: Callable[[Config], Any], config_type: type[Config], document: str | None) -> None:
    """Parse the command line into `config_type` and run; bad input and Ctrl-C end with one line, not a traceback."""
    use_compilation_cache()
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    config = tyro.cli(config_type, description=_paragraphs(document), prog=f"python -m {spec.name}" if spec else None)
    try:
        run(config)
    except KeyboardInterrupt as stop:
        print(
            f"\n{stop or 'stopped'}; run again with the same flags to go on from the last checkpoint", file=sys.stderr
        )
        sys.exit(130)
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        if os.environ.get("DIFFJAX_TRACEBACK"):
            raise
        sys.exit(f"error: {error}\n(set DIFFJAX_TRACEBACK=1 for the traceback)")


def _paragraphs(document: str | None) -> str:
    """A docstring with each paragraph and list item on one line, which a terminal of any width then wraps."""
    lines: list[str] = []
    for line in (document or "").splitlines():
        text, code = line.strip(), line.startswith("    ")
        item = text.startswith("- ")
        joins = lines and lines[-1] and not lines[-1].startswith("    ") and text and not item and not code
        lines = [*lines[:-1], f"{lines[-1]} {text}"] if joins else [*lines, line]
    return "\n".join(lines)


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, in the checkout unless JAX_COMPILATION_CACHE_DIR says where."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(COMPILATION_CACHE))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def open_folder(config: Any) -> pathlib.Path:
    """Make the folder config.out and say what runs where."""
    out = pathlib.Path(config.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder, got the file {out}")
    out.mkdir(parents=True, exist_ok=True)
    device = jax.devices()[0]
    print(
        f"writing to {out}/ on {jax.device_count()} × {device.device_kind} ({device.platform}), jax {jax.__version__}"
    )
    return out


def write_config(out: pathlib.Path, config: Any) -> None:
    """Write config.json."""
    write_json(out / "config.json", as_dict(config))


def start(config: Any) -> pathlib.Path:
    """`open_folder` and `write_config`, for an experiment that keeps no checkpoints."""
    out = open_folder(config)
    write_config(out, config)
    return out


def as_dict(config: Any) -> dict[str, Any]:
    """A configuration as JSON values by name."""
    return {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in dataclasses.asdict(config).items()}


def write_json(path: pathlib.Path, values: dict[str, Any]) -> None:
    """Write numbers and arrays as JSON, atomically."""
    text = json.dumps(values, indent=2, default=lambda v: np.asarray(v).tolist()) + "\n"
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.chmod(name, 0o644)
    os.replace(name, path)


class Clock:
    """Seconds of each part of a run, by name."""

    def __init__(self):
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last lap, or the start, under `name`."""
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 1), now


def progress(total: int, initial: int = 0, what: str = "", unit: str = "step") -> tqdm.tqdm:
    """A progress bar with rate and time left, on the terminal's error stream."""
    return tqdm.tqdm(total=total, initial=initial, desc=what, unit=unit, dynamic_ncols=True, mininterval=0.5)


def save_figure(figure: Any, path: pathlib.Path) -> None:
    """Save a matplotlib figure as PNG and close it."""
    figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    print(f"wrote {path}")


def image_grid(axis: Any, images: np.ndarray, columns: int, limits: tuple[float, float]) -> None:
    """Draw images (N, H, W[, C]) as one mosaic on an axis, in the same grey levels for all."""
    images = np.asarray(images)
    images = images if images.ndim == 4 else images[..., None]  # (N, H, W, C)
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), np.nan)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        canvas[top : top + height, left : left + width] = image
    low, high = limits
    scaled = np.clip((canvas - low) / (high - low), 0, 1)
    palette = matplotlib.colormaps["gray"].with_extremes(bad="#7aa6c2")
    if channels == 1:
        axis.imshow(np.ma.masked_invalid(scaled[..., 0]), cmap=palette, vmin=0, vmax=1, interpolation="nearest")
    else:
        axis.imshow(np.nan_to_num(scaled[..., :3], nan=0.6), interpolation="nearest")
    axis.set_axis_off()
