"""The folder of a run: its lock, config.json, metrics.json and report.html."""

import ast
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shlex
import sys
import time
from typing import Any

import jax

import diffjax
import experiments
from experiments.shared import devices, html_report, strict_json

EXPERIMENT = "experiment"
"""The entry of config.json that names the experiment."""


@contextlib.contextmanager
def locks():
    """Have `open_folder` take locks, and release them at the end."""
    global _held
    _held = {}
    try:
        yield
    finally:
        held, _held = _held, None
        for one in held.values():
            one.release()


_TEMPORARY = r"\..+\.(json(\.writing|[a-z0-9_]{8})|html\.writing)"

# Locks by folder. None outside of `cli.main`, where nothing is locked.
_held: dict[pathlib.Path, Any] | None = None


def open_folder(config: Any) -> pathlib.Path:
    """Choose the devices and make the folder config.out, and print both.

    Of several processes the first alone writes there. Raises ValueError if
    config.json there is that of another experiment, which would be lost.
    """
    used = devices.use(config)
    out = pathlib.Path(config.out)
    name, other = experiment_of(config), _stored_experiment(out)
    if name and other and name != other:
        raise ValueError(
            f"out must not be the folder of another experiment, {out} is that of "
            f"{other} and this is {name}: take another folder"
        )
    if not devices.is_first():
        return out
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder, got the file {out}")
    out.mkdir(parents=True, exist_ok=True)
    if _held is not None and out.absolute() not in _held:
        # Imported here because it imports orbax, which takes a second.
        from diffjax.training import lock

        _held[out.absolute()] = lock.Lock(out)
        # Runs that were killed leave temporary files.
        for path in out.iterdir():
            if re.fullmatch(_TEMPORARY, path.name):
                path.unlink()
    global _run
    _run = _Run(out.absolute(), name or out.absolute().name, used)
    print(
        f"writing to {out}/ on {_run.device}, jax {jax.__version__}",
        flush=True,
    )
    return out


def write_config(
    out: pathlib.Path, config: Any, about: dict[str, Any] | None = None
) -> None:
    """Write config.json.

    Args:
      out: The folder.
      config: The flags, a dataclass.
      about: Further entries.
    """
    name = experiment_of(config)
    named = {} if name is None else {EXPERIMENT: name}
    write_json(out / "config.json", named | as_dict(config) | (about or {}))


def experiment_of(config: Any) -> str | None:
    """The NAME of experiments/NAME, where the flags' dataclass is. None elsewhere."""
    module = type(config).__module__
    if module == "__main__":
        module = program() or ""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "experiments" and rest else None


def program() -> str | None:
    """The module that `python -m` runs. None if Python was started otherwise."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec else None


def _stored_experiment(out):
    """The experiment that config.json names. None if it is absent, damaged, or of
    a version that did not name it.
    """
    try:
        return json.loads((out / "config.json").read_text())[EXPERIMENT]
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return None


def start(config: Any) -> pathlib.Path:
    """`open_folder` and `write_config`, for an experiment that keeps no
    checkpoints.

    Raises ValueError if another experiment keeps its own there, which could not be
    opened without their config.json.
    """
    out = pathlib.Path(config.out)
    if out.is_dir() and any(out.glob("*checkpoints")):
        raise ValueError(
            f"out must not be the folder of a trained run, whose config.json would be "
            f"lost, got {out}: take another folder"
        )
    out = open_folder(config)
    # Results of another run beside these flags would be taken for theirs.
    if devices.is_first():
        for name in ("metrics.json", "report.html"):
            (out / name).unlink(missing_ok=True)
    write_config(out, config)
    return out


def as_dict(config: Any) -> dict[str, Any]:
    """The flags as JSON values by name."""
    return {
        k: str(v) if isinstance(v, pathlib.Path) else v
        for k, v in dataclasses.asdict(config).items()
    }


def write_json(
    path: pathlib.Path, values: dict[str, Any], *, indent: int | None = 2
) -> None:
    """Write numbers and arrays as JSON, atomically.

    Args:
      path: The file.
      values: Numbers, strings and arrays by name, nested as JSON allows. JSON has no
        NaN and no infinity: they are written as "NaN", "Infinity" and "-Infinity",
        which `float` reads.
      indent: Spaces of each level. None for one line.

    Raises:
      FileNotFoundError: If the folder was removed during the run.
    """
    write_text(path, strict_json.dumps(values, indent))


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a text file, atomically. Of several processes only the first writes.

    Args:
      path: The file.
      text: Its content.

    Raises:
      FileNotFoundError: If the folder was removed during the run.
    """
    if not devices.is_first():
        return
    folder = path.absolute().parent
    if not folder.is_dir() or (
        _held is not None and folder in _held and not _held[folder].file.exists()
    ):
        raise FileNotFoundError(
            f"{path.parent} was removed during the run: {path.name} is not written"
        )
    # The name is the same each time, so that kills leave one file at most.
    temporary = path.with_name(f".{path.name}.writing")
    with naming(path):
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)


# ------------------------------------------------------------- results and report


@dataclasses.dataclass
class _Run:
    """The run whose folder was opened last, for its report."""

    folder: pathlib.Path
    name: str
    devices: int

    def __post_init__(self):
        self.started, self.clock = _now(), time.perf_counter()
        self.resumed = any(self.folder.glob("*checkpoints"))
        self.figures: dict[pathlib.Path, str] = {}
        self.results: tuple[str, str, bool] | None = None  # text, shown, finished

    @property
    def device(self) -> str:
        """Number, name and platform of the devices."""
        return f"{self.devices} × {jax.default_backend()} ({devices.name()})"


_run: _Run | None = None


def write_results(
    out: pathlib.Path,
    results: dict[str, Any],
    *,
    shown: str = "",
    finished: bool = True,
) -> None:
    """Write the results of a run to metrics.json and report.html.

    The report holds the figures that `save_figure` saves in the folder, before or
    after.

    Args:
      out: The run's folder.
      results: Numbers and arrays by name. metrics.json adds the "device".
      shown: HTML that the report shows before the numbers.
      finished: Whether no further results follow.
    """
    global _run
    text = strict_json.dumps(results | {"device": devices.name()})
    write_text(out / "metrics.json", text)
    if _run is None or _run.folder != out.absolute():
        _run = _Run(out.absolute(), out.absolute().name, jax.device_count())
    _run.results = text, shown, finished
    _write_report()


def add_figure(path: pathlib.Path, alt: str) -> None:
    """Show a figure of the run in its report.

    Args:
      path: The PNG file. Only those in the run's folder are shown.
      alt: What it shows, in words.
    """
    if _run is not None and _run.folder == path.absolute().parent:
        _run.figures[path.absolute()] = alt
        if _run.results is not None:
            _write_report()


def _write_report():
    if not devices.is_first():
        return
    text, shown, finished = _run.results
    config = _run.folder / "config.json"
    notes = []
    if not finished:
        notes.append("The run is not finished. These are its results so far.")
    if _run.resumed:
        notes.append(
            "The run went on from the checkpoints of an earlier one, whose time is not "
            "in the time below."
        )
    page = html_report.run_page(
        html_report.Report(
            name=_run.name,
            document=_document(_run.name),
            metrics=text,
            config=config.read_text(encoding="utf-8") if config.is_file() else "",
            figures=[html_report.Figure(*pair) for pair in _run.figures.items()],
            about=_about(_run),
            shown=shown,
            notes=notes,
        )
    )
    write_text(_run.folder / "report.html", page)


def _about(run):
    name = program()
    of_an_experiment = name is not None and name.startswith("experiments.")
    command = ["python", "-m", name, *sys.argv[1:]] if of_an_experiment else None
    versions = {"python": platform.python_version()}
    for package in ("diffjax", "jax", "jaxlib", "flax"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    versions.setdefault("diffjax", diffjax.__version__)
    seconds = time.perf_counter() - run.clock
    return {
        "command": shlex.join(command) if command else "called from Python",
        "started": run.started,
        "ran for": _duration(seconds),
        "device": run.device,
        "processes": str(jax.process_count()),
        "platform": platform.platform(),
        **versions,
    }


def _now():
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y-%m-%d %H:%M} UTC"


def _duration(seconds):
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _document(name):
    """The docstring of an experiment, without importing it. Empty if there is none."""
    path = pathlib.Path(experiments.__path__[0]) / name / "__main__.py"
    if not path.is_file():
        return ""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


@contextlib.contextmanager
def naming(path):
    """Add the file's name to errors that lack it, such as that of a full disk."""
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
      cure: The end of the error's message: what to do if the file is damaged.
      *names: Entries that it must have.

    Returns:
      The object.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is damaged. The message names the file and the cure.
    """
    try:
        values = strict_json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}, not an object")
        if missing := [name for name in names if name not in values]:
            raise ValueError(f"it lacks {', '.join(missing)}")
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise ValueError(f"{path} is damaged ({error}): {cure}") from None
    return values
