"""What every experiment does alike: flags, config.json and metrics.json in OUT, progress, figures."""

import codecs
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import re
import signal
import sys
import time
import unicodedata
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import tqdm
import tyro

from experiments import stop_at_once

Config = TypeVar("Config")

COMPILATION_CACHE = pathlib.Path(__file__).parents[1] / ".xla_cache"


def main(
    run: Callable[[Config], Any], config_type: type[Config], document: str | None
) -> None:
    """Parse the command line into `config_type` and run; bad input and Ctrl-C end with one line, not a traceback.

    While it runs, no other process may write to its OUT, and a reader of its output that goes away does not end it.
    """
    write_any_text()
    use_compilation_cache()
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = f"python -m {spec.name}" if spec else None
    with _enduring_streams(), _locks():
        try:
            if signal.getsignal(signal.SIGINT) is stop_at_once:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            run(tyro.cli(config_type, description=_paragraphs(document), prog=name))
        except KeyboardInterrupt as stop:
            print(f"\n{str(stop) or 'stopped'}; {_AGAIN}", file=sys.stderr)
            sys.exit(130)
        except (
            ValueError,
            TypeError,
            OSError,
            FloatingPointError,
            RuntimeError,
        ) as error:
            of_a_bug = (
                isinstance(error, RuntimeError) and type(error) is not RuntimeError
            )  # XLA's, a missing method
            if of_a_bug or os.environ.get("DIFFJAX_TRACEBACK"):
                raise
            print(
                f"error: {error}\n(set DIFFJAX_TRACEBACK=1 for the traceback)",
                file=sys.stderr,
            )
            sys.exit(1)


_AGAIN = "run again with the same flags to go on from the last checkpoint"


class Stream:
    """A text stream whose reader may go away: what can no longer be written is dropped."""

    def __init__(self, stream: Any):
        self._stream = open(os.devnull, "w") if stream is None else stream

    def write(self, text: str) -> int:
        """Write, if there is a reader."""
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if there is a reader."""
        with self._dropping():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropping(self):
        try:
            yield
        except UnicodeError:
            raise
        except (OSError, ValueError):  # a broken pipe, a closed terminal, a closed file
            nowhere = open(os.devnull, "w")
            with contextlib.suppress(OSError, ValueError):
                os.dup2(
                    nowhere.fileno(), self._stream.fileno()
                )  # so that what is buffered has a place to go to
            self._stream = nowhere

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _enduring_streams():
    with (
        contextlib.redirect_stdout(Stream(sys.stdout)),
        contextlib.redirect_stderr(Stream(sys.stderr)),
    ):
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


@contextlib.contextmanager
def _locks():
    """Have `open_folder` take locks, and release them at the end."""
    global _held
    _held = {}
    try:
        yield
    finally:
        held, _held = _held, None
        for one in held.values():
            one.release()


_held: dict[pathlib.Path, Any] | None = None  # by folder; None outside `main`


def write_any_text() -> None:
    """Let output streams of any encoding take any text: what they cannot write is spelt out.

    A pipe in cp1252, latin-1 or ASCII then shows sigma for σ and -> for →, where it would raise UnicodeEncodeError.
    """
    codecs.register_error("spell", _spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spell")


_SPELLINGS = str.maketrans(
    {"−": "-", "–": "-", "—": "-", "…": "...", "→": "->", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "×": "x",
     "·": "*", "∈": " in ", "∞": "inf", "√": "sqrt", "∫": "int", "Σ": "sum", "Π": "prod", "∇": "grad ", "∂": "d",
     "‖": "||", "’": "'", "‘": "'", "“": '"', "”": '"', "░": "-", "█": "#",
     "⁄": "/"}
)  # fmt: skip


def _spell(error):
    """The codec error handler "spell": other signs for those that the encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    spelt = ""
    for sign in error.object[error.start : error.end].translate(_SPELLINGS):
        name = unicodedata.name(sign, "?")
        parts = unicodedata.normalize("NFKD", sign).translate(_SPELLINGS)
        plain = "".join(part for part in parts if part.isascii() and part.isprintable())
        if name.startswith("BOX DRAWINGS"):
            spelt += (
                "|"
                if name.endswith(" VERTICAL")
                else "-"
                if name.endswith(" HORIZONTAL")
                else "+"
            )
        elif name.startswith("GREEK"):
            spelt += name.split(" WITH ")[0].rsplit(" ", 1)[-1].lower()
        else:
            spelt += plain or ("" if unicodedata.combining(sign) else "?")
    return spelt, error.end


def _paragraphs(document: str | None) -> str:
    """A docstring with each paragraph and list item on one line, which a terminal of any width then wraps."""
    lines: list[str] = []
    for line in (document or "").splitlines():
        text, code = line.strip(), line.startswith("    ")
        item = text.startswith("- ")
        joins = (
            lines
            and lines[-1]
            and not lines[-1].startswith("    ")
            and text
            and not item
            and not code
        )
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
    if _held is not None and out.absolute() not in _held:
        from diffjax.training import lock  # which imports orbax, for a second

        _held[out.absolute()] = lock.Lock(out)
        for path in out.iterdir():  # of runs that were killed
            if re.fullmatch(r"\..+\.json(\.writing|[a-z0-9_]{8})", path.name):
                path.unlink()
    device = jax.devices()[0]
    print(
        f"writing to {out}/ on {jax.device_count()} × {device.device_kind} ({device.platform}), jax {jax.__version__}"
    )
    return out


def write_config(
    out: pathlib.Path, config: Any, about: dict[str, Any] | None = None
) -> None:
    """Write config.json: the flags, and the entries of `about`."""
    write_json(out / "config.json", as_dict(config) | (about or {}))


def start(config: Any) -> pathlib.Path:
    """`open_folder` and `write_config`, for an experiment that keeps no checkpoints."""
    out = open_folder(config)
    write_config(out, config)
    return out


def as_dict(config: Any) -> dict[str, Any]:
    """A configuration as JSON values by name."""
    return {
        k: str(v) if isinstance(v, pathlib.Path) else v
        for k, v in dataclasses.asdict(config).items()
    }


def write_json(path: pathlib.Path, values: dict[str, Any]) -> None:
    """Write numbers and arrays as JSON, atomically. Raises FileNotFoundError if the folder was removed."""
    folder = path.absolute().parent
    if not folder.is_dir() or (
        _held is not None and folder in _held and not _held[folder].path.exists()
    ):
        raise FileNotFoundError(
            f"{path.parent} was removed during the run: {path.name} is not written"
        )
    temporary = path.with_name(
        f".{path.name}.writing"
    )  # the same each time, so that kills leave one at most
    text = json.dumps(values, indent=2, default=lambda v: np.asarray(v).tolist()) + "\n"
    with _naming(path):
        temporary.write_text(text)
        os.replace(temporary, path)


@contextlib.contextmanager
def _naming(path):
    """Name the file in errors that do not, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def read_json(path: pathlib.Path, cure: str, *names: str) -> dict[str, Any]:
    """Read the object stored in a JSON file.

    Args:
      path: The file.
      cure: What to do if the file is damaged, the end of the error's message.
      *names: Entries that it must have.

    Returns:
      The object.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is damaged. The message names the file and the cure.
    """
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}, not an object")
        if missing := [name for name in names if name not in values]:
            raise ValueError(f"it lacks {', '.join(missing)}")
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise ValueError(f"{path} is damaged ({error}): {cure}") from None
    return values


class Clock:
    """Seconds of each part of a run, by name."""

    def __init__(self):
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last lap, or the start, under `name`."""
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 1), now


def progress(
    total: int, initial: int = 0, what: str = "", unit: str = "step"
) -> tqdm.tqdm:
    """A progress bar with rate and time left, on the terminal's error stream."""
    return tqdm.tqdm(
        total=total,
        initial=initial,
        desc=what,
        unit=unit,
        dynamic_ncols=True,
        mininterval=0.5,
    )


def save_figure(figure: Any, path: pathlib.Path) -> None:
    """Save a matplotlib figure as PNG and close it."""
    with _naming(path):
        figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    print(f"wrote {path}")


def image_grid(
    axis: Any, images: np.ndarray, columns: int, limits: tuple[float, float]
) -> None:
    """Draw images (N, H, W[, C]) as one mosaic on an axis, in the same grey levels for all."""
    images = np.asarray(images)
    images = images if images.ndim == 4 else images[..., None]  # (N, H, W, C)
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    canvas = np.full(
        (rows * (height + 1) - 1, columns * (width + 1) - 1, channels), np.nan
    )
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        canvas[top : top + height, left : left + width] = image
    low, high = limits
    scaled = np.clip((canvas - low) / (high - low), 0, 1)
    palette = matplotlib.colormaps["gray"].with_extremes(bad="#7aa6c2")
    if channels == 1:
        axis.imshow(
            np.ma.masked_invalid(scaled[..., 0]),
            cmap=palette,
            vmin=0,
            vmax=1,
            interpolation="nearest",
        )
    else:
        axis.imshow(np.nan_to_num(scaled[..., :3], nan=0.6), interpolation="nearest")
    axis.set_axis_off()
