"""The command line of every experiment: flags, errors, interrupts, progress and
results.
"""

import codecs
import contextlib
import dataclasses
import io
import os
import pathlib
import shutil
import signal
import sys
import textwrap
import time
import types
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import docstring_parser
import jax
import tqdm
import tyro

import diffjax as dj
from experiments import stop_at_once
from experiments.shared import devices
from experiments.shared.files import locks, program

Config = TypeVar("Config")

LARGEST_SEED = 2**32 - 1
"""Greatest seed of a command line. JAX's keys have 32 bits of one, without its
64-bit types, so that a greater one would stand for a smaller one.
"""

COMPILATION_CACHE = pathlib.Path(__file__).parents[2] / ".xla_cache"


def main(
    run: Callable[[Config], Any],
    config_type: type[Config],
    document: str | None,
    *,
    defaults: Callable[[Sequence[str]], Config] | None = None,
) -> None:
    """Parse the command line and run an experiment.

    Bad input and Ctrl-C end with one line instead of a traceback. While the
    experiment runs, no other process may write to its OUT. A reader of its
    output may go away without ending it.

    Args:
      run: The experiment, a function of its configuration.
      config_type: The frozen dataclass of its flags.
      document: Its docstring, shown by `--help`.
      defaults: Words of the command line -> the configuration whose values are
        the defaults of the flags. None for those of `config_type`.

    Raises:
      SystemExit: After bad input (code 1) or an interrupt (code 130).
    """
    write_any_text()
    use_compilation_cache()
    name = f"python -m {module}" if (module := program()) else None
    with _enduring_streams(), locks():
        try:
            if signal.getsignal(signal.SIGINT) is stop_at_once:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            settings: dict[str, Any] = {}
            if defaults is not None:
                settings["default"] = defaults(sys.argv[1:])
            _document_flags(config_type)
            if {"-h", "--help"} & set(sys.argv[1:]):
                print(_wrapped(document), end="\n\n")
            config = tyro.cli(config_type, description="", prog=name, **settings)
            if hasattr(config, "seed"):
                dj.checks.integer("seed", config.seed, 0, LARGEST_SEED)
            devices.start(config)
            with contextlib.ExitStack() as stack:
                if not devices.is_first():
                    nowhere = stack.enter_context(open(os.devnull, "w"))
                    stack.enter_context(contextlib.redirect_stdout(nowhere))
                run(config)
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
            # Subclasses, such as those of XLA or of missing methods, are bugs,
            # not bad input.
            of_a_bug = (
                isinstance(error, RuntimeError) and type(error) is not RuntimeError
            )
            if of_a_bug or os.environ.get("DIFFJAX_TRACEBACK"):
                raise
            print(
                f"error: {error}\n(set DIFFJAX_TRACEBACK=1 for the traceback)",
                file=sys.stderr,
            )
            sys.exit(1)


_AGAIN = "run again with the same flags to go on from the last checkpoint"


class Stream:
    """A text stream whose reader may go away. Text that can no longer be written
    is dropped.
    """

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
        except (OSError, ValueError):
            # A broken pipe, a closed terminal or a closed file raises one of
            # these.
            nowhere = open(os.devnull, "w")
            with contextlib.suppress(OSError, ValueError):
                # Python flushes its buffer at exit. The descriptor must then
                # lead somewhere.
                os.dup2(nowhere.fileno(), self._stream.fileno())
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


def write_any_text() -> None:
    """Let output streams of any encoding take any text, by spelling out what they
    lack.

    A pipe in cp1252, latin-1 or ASCII then shows sigma for σ and -> for →,
    where Python would raise UnicodeEncodeError.
    """
    codecs.register_error("spell", _spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spell")


_SPELLINGS = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "—": "-",
        "…": "...",
        "→": "->",
        "≤": "<=",
        "≥": ">=",
        "≠": "!=",
        "≈": "~",
        "×": "x",
        "·": "*",
        "∈": " in ",
        "∞": "inf",
        "√": "sqrt",
        "∫": "int",
        "Σ": "sum",
        "Π": "prod",
        "∇": "grad ",
        "∂": "d",
        "‖": "||",
        "’": "'",
        "‘": "'",
        "“": '"',
        "”": '"',
        "░": "-",
        "█": "#",
        "⁄": "/",
    }
)


def _spell(error):
    """The codec error handler "spell", which writes other signs for those that
    the encoding lacks.
    """
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


def _document_flags(config_type: type) -> None:
    """Give tyro the text of each flag as one line.

    Of docstrings it keeps the line breaks, and wraps the lines once more.
    """
    texts: dict[str, str] = {}
    for parent in reversed(config_type.__mro__[:-1]):
        for entry in docstring_parser.parse_from_object(parent).params:
            texts[entry.arg_name] = " ".join((entry.description or "").split())
    for field in dataclasses.fields(config_type):
        text = {"help": texts[field.name]} if texts.get(field.name) else {}
        field.metadata = types.MappingProxyType({**field.metadata, **text})


def _wrapped(document: str | None) -> str:
    """The paragraphs and list items of a docstring as wide as the terminal. Lines
    of code, which are indented, are unchanged.
    """
    width, lines = shutil.get_terminal_size().columns, []
    for line in (document or "").splitlines():
        text = line.strip()
        begins = line.startswith("    ") or text.startswith("- ")
        if lines and text and not begins and lines[-1][:4].strip():
            lines[-1] += f" {text}"
        else:
            lines.append(line)
    wrap = textwrap.TextWrapper(
        width, break_long_words=False, break_on_hyphens=False, subsequent_indent=""
    )
    for i, line in enumerate(lines):
        wrap.subsequent_indent = "  " if line.startswith("- ") else ""
        if line[:4].strip():
            lines[i] = wrap.fill(line)
    return "\n".join(lines).strip("\n")


def use_compilation_cache() -> None:
    """Keep compiled programs between runs.

    They lie in the checkout unless JAX_COMPILATION_CACHE_DIR names another
    folder.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(COMPILATION_CACHE))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


class Clock:
    """Seconds of each part of a run, by name."""

    def __init__(self):
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Record under `name` the time since the last lap or the start."""
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 1), now


class Bar(tqdm.tqdm):
    """A progress bar whose rate leaves out the first update, which may compile."""

    _first: tuple[int, float] | None = None

    def update(self, n: float | None = 1) -> bool | None:
        """Add units that are done."""
        if n and self._first is None and not self.disable:
            self._first = self.n + n, self._time()
        return super().update(n)

    @property
    def format_dict(self) -> Any:
        """The fields of the shown text. A rate of 0 is shown as unknown."""
        if self.disable:
            return super().format_dict
        units, since = self._first or (self.n, 0.0)
        rate = (self.n - units) / max(self._time() - since, 1e-9)
        return super().format_dict | {"rate": rate}


def progress(
    total: int,
    initial: int = 0,
    label: str = "",
    unit: str = "step",
    *,
    hidden: bool = False,
) -> Bar:
    """A progress bar with rate and time left, on the terminal's error stream.

    Args:
      total: Units of the whole work.
      initial: Units that are already done.
      label: Text before the bar.
      unit: Name of a unit.
      hidden: Whether it is not shown, for work inside of another bar's.

    Returns:
      The bar, a context manager with `update(count)`.
    """
    return Bar(
        total=total,
        initial=initial,
        desc=label,
        unit=unit,
        disable=hidden or not devices.is_first(),
        dynamic_ncols=True,
        mininterval=0.5,
    )


def _number(value):
    """Four decimals, or two significant digits of what they would show as 0."""
    return f"{value:.1e}" if 0 < abs(value) < 5e-5 else f"{value:.4f}"


def print_results(
    results: dict[str, Any], units: Mapping[str, str] | None = None
) -> None:
    """Print the numbers of a flat dictionary, one per line.

    Args:
      results: Numbers and texts by name.
      units: Units by the first words of the names, such as {"energy": "nats"}.
        Those that start with "seconds" have theirs.
    """
    width = max(map(len, results), default=0)
    for name, value in results.items():
        shown = _number(value) if isinstance(value, float) else str(value)
        unit = "" if value is None else _unit_of(name, units)
        print(f"{name:{width}}  {shown} {unit}".rstrip())


def print_table(
    columns: Mapping[str, Mapping[str, Any]],
    title: str = "",
    units: Mapping[str, str] | None = None,
) -> None:
    """Print numbers by name, one column per set and one for their units.

    Args:
      columns: Numbers by name, by the title of a column.
      title: Text above the names.
      units: As in `print_results`.
    """
    if not columns:
        return
    names = list(next(iter(columns.values())))
    width = max(map(len, (title, *names)))
    print(f"{title:{width}}" + "".join(f"  {column:>15}" for column in columns))
    for name in names:
        values = (column[name] for column in columns.values())
        cells = (f"{v:15.4g}" if isinstance(v, float) else f"{v:15}" for v in values)
        row = f"{name:{width}}" + "".join(f"  {cell}" for cell in cells)
        print(f"{row}  {_unit_of(name, units)}".rstrip())


def _unit_of(name, units):
    known = {"seconds": "s"} | dict(units or {})
    starts = [start for start in known if name.startswith(start)]
    return known[max(starts, key=len)] if starts else ""
