"""The pages of the API: every public name, by topic, in the order of their use."""

import importlib
import inspect
import types
from typing import NamedTuple


class Topic(NamedTuple):
    """A page of the API.

    Attributes:
      slug: Name of the page.
      title: Its title.
      modules: Modules whose public names it lists. `diffjax` stands for the verbs that
        it exports itself.
    """

    slug: str
    title: str
    modules: tuple[str, ...]


TOPICS = (
    Topic("verbs", "Sample and evaluate", ("diffjax.sampling", "diffjax.likelihood")),
    Topic("schedules", "Schedules", ("diffjax.schedules",)),
    Topic("targets", "Exact targets", ("diffjax.targets",)),
    Topic("predictions", "Networks to denoisers", ("diffjax.predictions",)),
    Topic("solvers", "Solvers", ("diffjax.solvers",)),
    Topic("grids", "Grids", ("diffjax.grids",)),
    Topic("tuning", "Fitted grids and solvers", ("diffjax.tuning",)),
    Topic(
        "losses",
        "Losses",
        (
            "diffjax.losses",
            "diffjax.losses.times",
            "diffjax.losses.weights",
            "diffjax.losses.uncertainty",
        ),
    ),
    Topic("training", "Training", ("diffjax.training",)),
    Topic("networks", "Networks", ("diffjax.networks",)),
    Topic("guidance", "Guidance", ("diffjax.guidance",)),
    Topic("inverse", "Inverse problems", ("diffjax.inverse",)),
    Topic("ddpm", "The discrete chain and its bound", ("diffjax.ddpm",)),
    Topic("sde", "SDEs and Fokker–Planck", ("diffjax.sde",)),
    Topic("ncsn", "Noise ladders (NCSN)", ("diffjax.ncsn",)),
    Topic("langevin", "Langevin chains", ("diffjax.langevin",)),
    Topic("energies", "Energies", ("diffjax.energies", "diffjax.quadrature")),
    Topic("flows", "Normalizing flows", ("diffjax.flows",)),
    Topic("flow_maps", "Flow maps: one to four steps", ("diffjax.flow_maps",)),
    Topic("vaes", "Autoencoders", ("diffjax.vaes",)),
    Topic(
        "metrics", "Metrics and divergences", ("diffjax.metrics", "diffjax.divergences")
    ),
    Topic("distributions", "Distributions", ("diffjax.distributions",)),
    Topic(
        "interop",
        "Models of other libraries",
        ("diffjax.interop", "diffjax.interop.diffusers", "diffjax.interop.checkpoints"),
    ),
    Topic(
        "foundations",
        "Foundations",
        ("diffjax.types", "diffjax.checks", "diffjax.numerics", "diffjax.noise"),
    ),
)
"""The pages, in the order in which a user meets them."""


class Entry(NamedTuple):
    """A public name.

    Attributes:
      path: Full dotted path.
      short: How users write it, from `dj` on.
      group: The module that defines it.
    """

    path: str
    short: str
    group: str


def entries(module_name: str) -> list[Entry]:
    """Public names of a module that are not modules, in the order of its source.

    Args:
      module_name: Full dotted name.

    Returns:
      The entries, names of one defining module together.
    """
    module = importlib.import_module(module_name)
    listed = []
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, types.ModuleType):
            continue
        defined = getattr(value, "__module__", None)
        inside = isinstance(defined, str) and defined.startswith(module_name)
        group = defined if inside else module_name
        short = f"{module_name}.{name}".replace("diffjax", "dj", 1)
        if hasattr(importlib.import_module("diffjax"), name) and module_name in (
            "diffjax.sampling",
            "diffjax.likelihood",
        ):
            short = f"dj.{name}"
        listed.append(Entry(f"{module_name}.{name}", short, group))
    order = {group: i for i, group in enumerate(_groups(module, listed))}
    return sorted(listed, key=lambda e: (order[e.group], _line(e)))


def _groups(module, listed):
    """Defining modules in the order in which the source of `module` imports them."""
    source = inspect.getsource(module)
    groups = dict.fromkeys(entry.group for entry in listed)
    position = lambda g: source.find(f"from .{g.rpartition('.')[2]} import")
    return sorted(groups, key=position)


def _line(entry):
    value = getattr(
        importlib.import_module(entry.group), entry.path.rpartition(".")[2], None
    )
    try:
        return inspect.getsourcelines(inspect.unwrap(value))[1]
    except (TypeError, OSError):
        return 0


def page(topic: Topic) -> str:
    """The Markdown of a page, for mkdocstrings.

    Args:
      topic: The page.

    Returns:
      Markdown.
    """
    parts = [f"# {topic.title}\n"]
    for module_name in topic.modules:
        if len(topic.modules) > 1:
            parts.append(f"## `{module_name.replace('diffjax', 'dj', 1)}`\n")
        parts.append(_directive(module_name, heading=False))
        listed = entries(module_name)
        level = 3 if len(topic.modules) > 1 else 2
        parts.append(_table(listed))
        parts += [_directive(entry.path, level=level) for entry in listed]
    return "\n".join(parts)


def _table(listed):
    lines = ["| Name | Purpose |", "|---|---|"]
    for entry in listed:
        name = entry.path.rpartition(".")[2]
        lines.append(f"| [`{name}`][{entry.path}] | {_purpose(entry)} |")
    return "\n".join(lines) + "\n"


def _purpose(entry):
    """First line of the docstring, up to its first full stop."""
    module, _, name = entry.path.rpartition(".")
    value = getattr(importlib.import_module(module), name)
    if not (inspect.isfunction(inspect.unwrap(value)) or inspect.isclass(value)):
        return ""
    text = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")
    return text.replace("|", "\\|")


def _directive(path, heading=True, level=2):
    options = (
        {"heading_level": level}
        if heading
        else {
            "show_root_heading": "false",
            "show_root_toc_entry": "false",
            "members": "[]",
        }
    )
    lines = [f"::: {path}", "    options:"]
    return "\n".join([*lines, *(f"      {k}: {v}" for k, v in options.items())]) + "\n"


def addresses() -> dict[str, str]:
    """Address of each public name from the root of the site, by how users write it."""
    table: dict[str, str] = {}
    for topic in TOPICS:
        for module_name in topic.modules:
            short = module_name.replace("diffjax", "dj", 1)
            table.setdefault(short, f"api/{topic.slug}.html")
            for entry in entries(module_name):
                table[entry.short] = f"api/{topic.slug}.html#{entry.path}"
    return table
