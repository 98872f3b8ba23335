"""The pages of the API: every public name, by topic, in the order of their use."""

import importlib
import importlib.util
import inspect
import types
from typing import NamedTuple

import diffjax


class Topic(NamedTuple):
    """A page of the API.

    Attributes:
      slug: Name of the page.
      title: Its title.
      packages: Modules whose public names it lists, with those of their public
        submodules. Those of diffjax itself have pages of their own.
      first: Defining modules that come first, by their names in the package. The
        others follow in the order in which the package imports them.
    """

    slug: str
    title: str
    packages: tuple[str, ...]
    first: tuple[str, ...] = ()

    @property
    def modules(self) -> list[str]:
        """The packages, each followed by its public submodules."""
        return [name for package in self.packages for name in with_submodules(package)]


def with_submodules(module_name: str) -> list[str]:
    """A module and the public modules below it.

    Args:
      module_name: Full dotted name.

    Returns:
      Full dotted names.
    """
    module, names = importlib.import_module(module_name), [module_name]
    if module is diffjax:
        return names
    for name in module.__all__:
        if isinstance(getattr(module, name), types.ModuleType):
            names += with_submodules(f"{module_name}.{name}")
    return names


def short(name: str) -> str:
    """A full dotted name as users write it, from `dj` on."""
    return name.replace("diffjax", "dj", 1)


VERBS = ("diffjax.sampling", "diffjax.likelihood")
"""Modules whose names are listed after those that `diffjax` exports itself."""

TOPICS = (
    Topic(
        "verbs",
        "Sample and evaluate",
        ("diffjax", *VERBS),
        first=("sampling.drawing", "sampling.encoding", "likelihood"),
    ),
    Topic("schedules", "Schedules", ("diffjax.schedules",)),
    Topic("targets", "Exact targets", ("diffjax.targets",)),
    Topic("predictions", "Networks to denoisers", ("diffjax.predictions",)),
    Topic(
        "solvers",
        "Solvers",
        ("diffjax.solvers",),
        first=("ancestral", "multistep", "exponential", "ode", "adaptive", "sde"),
    ),
    Topic("grids", "Grids", ("diffjax.grids",)),
    Topic("tuning", "Fitted grids and solvers", ("diffjax.tuning",)),
    Topic("losses", "Losses", ("diffjax.losses",)),
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
    Topic("interop", "Models of other libraries", ("diffjax.interop",)),
    Topic(
        "foundations",
        "Foundations",
        (
            "diffjax.types",
            "diffjax.checks",
            "diffjax.numerics",
            "diffjax.noise",
            "diffjax.spectral",
        ),
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


def entries(module_name: str, first: tuple[str, ...] = ()) -> list[Entry]:
    """Public names of a module that are not modules, in the order of its source.

    Args:
      module_name: Full dotted name.
      first: Names in the package of the defining modules that come first.

    Returns:
      The entries, names of one defining module together. Of `VERBS` those that
        `diffjax` does not export.
    """
    module = importlib.import_module(module_name)
    listed = []
    for name in module.__all__:
        value = getattr(module, name)
        verb = module_name in VERBS and getattr(diffjax, name, None) is value
        if verb or isinstance(value, types.ModuleType):
            continue
        defined = getattr(value, "__module__", None)
        inside = isinstance(defined, str) and defined.startswith(module_name)
        group = defined if inside else module_name
        # A submodule of the same name would be shown in its place.
        package = hasattr(module, "__path__")
        hidden = package and importlib.util.find_spec(f"{module_name}.{name}")
        path = f"{group if hidden else module_name}.{name}"
        listed.append(Entry(path, short(f"{module_name}.{name}"), group))
    order = {group: i for i, group in enumerate(_groups(module, listed, first))}
    return sorted(listed, key=lambda e: (order[e.group], _line(e)))


def _groups(module, listed, first):
    """Defining modules: the `first`, then in the order of imports, `module` last."""
    source = inspect.getsource(module)

    def position(group):
        inside = group.removeprefix(module.__name__).strip(".")
        name = inside.partition(".")[0]
        for known in (inside, name):
            if known in first:
                return 0, first.index(known)
        return 1 if name else 2, source.find(f"from .{name} import")

    return sorted(dict.fromkeys(entry.group for entry in listed), key=position)


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
            parts.append(f"## `{short(module_name)}`\n")
        parts.append(_module(module_name))
        listed = entries(module_name, topic.first)
        parts.append(_table(listed))
        parts += [_directive(entry) for entry in listed]
    return "\n".join(parts)


def _table(listed):
    """All names with their purposes, under the first lines of their modules."""
    lines, group = ["| Name | Purpose |", "|---|---|"], None
    several = len({entry.group for entry in listed}) > 1
    for entry in listed:
        if several and entry.group != group:
            group = entry.group
            text = importlib.import_module(group).__doc__.split("\n\n")[0]
            lines.append(f"| | **{' '.join(text.split())}** |")
        name = entry.path.rpartition(".")[2]
        lines.append(f"| [`{name}`][{entry.path}] | {_purpose(entry)} |")
    return "\n".join(lines) + "\n"


def _purpose(entry):
    """First paragraph of the docstring, on one line."""
    module, _, name = entry.path.rpartition(".")
    value = getattr(importlib.import_module(module), name)
    if not (inspect.isfunction(inspect.unwrap(value)) or inspect.isclass(value)):
        return ""
    text = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")
    return text.replace("|", "\\|")


def _directive(entry):
    name = entry.path.rpartition(".")[2]
    options = {"heading_level": 2, "heading": entry.short, "toc_label": name}
    return _with_options(entry.path, options)


def _module(path):
    hidden = {"show_root_heading": "false", "show_root_toc_entry": "false"}
    return _with_options(path, {**hidden, "members": "[]"})


def _with_options(path, options):
    lines = [f"::: {path}", "    options:"]
    return "\n".join([*lines, *(f"      {k}: {v}" for k, v in options.items())]) + "\n"


def addresses() -> dict[str, str]:
    """Address of each public name from the root of the site, by how users write it."""
    table: dict[str, str] = {}
    for topic in TOPICS:
        for module_name in topic.modules:
            table.setdefault(short(module_name), f"api/{topic.slug}.html")
            for entry in entries(module_name, topic.first):
                table[entry.short] = f"api/{topic.slug}.html#{entry.path}"
    return table
