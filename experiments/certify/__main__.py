"""Is a sampler right: its order, its distribution, its ends, and which method it is?

    python -m experiments.certify package.module:function
    python -m experiments.certify "diffjax:unipc(3)" k_diffusion:heun
    python -m experiments.certify package.module:function --expect dpmpp_2m
    python -m experiments.certify --library diffusers

The function takes (denoiser, x, sigmas) and returns the end of a run. Arrays are of
NumPy, PyTorch or JAX. denoiser(x, sigma) is E[x_0 | x], for states x = x_0 + σ ε of
shape (B, D), and sigmas are decreasing levels, whose last may be 0. With
sigmas[0] = ∞ x is ε itself.

The denoiser returns unit vectors, and so do the random numbers, so that the states
show the sampler's table of coefficients. From it follow:

- consistency: a constant output must be carried exactly. A known mistake is named.
- the order, on a mixture whose flow is exact, or the weak order on Gaussians.
- KL(samples ‖ exact) in nats on N(0.5, 0.5²), by exact propagation.
- its identity: the known solvers with the same table.

Beside it stand the calls, the step to 0, starts at σ = ∞ and in the middle of a grid,
and whether rows depend on their batch. ✗ marks an error, · a property that is not
required.

Samplers of libraries are `diffjax:NAME`, `k_diffusion:NAME` and `diffusers:CLASS`, with
settings in parentheses. The last two need the extra `peers`. OUT has metrics.json and
report.html, and of two or more samplers:

- errors.png: their errors against their steps.

Units: `kl` and `kl_from_40` are in nats. `errors` are in data units, of samplers with
noise relative. `sigma`, `begin_index`, `equal`, `memory`, `rows` and `size` are in data
units. `calls`, `calls_to_zero` and `calls_at_zero` are counts. Orders, `deviation` and
`difference` have no unit.

Hardware and time: a function of NumPy or PyTorch takes 30 s on 2 CPU cores, most of it
for the tables of the known solvers. `--library diffjax` takes 20 minutes, because each
solver is compiled at five lengths.

Expect "the same as heun()" of k_diffusion:heun and an order of 2.00.
"""

import dataclasses
import functools
import pathlib
from typing import Any, Literal

import tyro

from diffjax import checks
from experiments.certify import adapters, identity, report
from experiments.certify.certificate import Certificate, certify
from experiments.certify.recording import double_precision
from experiments.shared import cli, files
from experiments.shared.figures import save_figure

PARTS = 11
"""Parts of a certificate, for the progress bar."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A certificate of each sampler."""

    samplers: tyro.conf.Positional[tuple[str, ...]] = ()
    """package.module:function, or a sampler of a library."""
    out: pathlib.Path = pathlib.Path("runs/certify")
    """Folder for config.json, metrics.json and report.html."""
    library: Literal["none", "diffjax", "k_diffusion", "diffusers"] = "none"
    """Also all samplers of this library."""
    arrays: Literal["auto", "numpy", "torch", "jax"] = "auto"
    """Arrays of the functions. Default: of the library that their module imports."""
    order: int | None = None
    """Order that the functions should have. It fails below `order` − 0.2."""
    expect: str | None = None
    """Solver of diffjax that the samplers should be, such as heun or "unipc(3)"."""
    images: bool = False
    """Whether the functions take states of shape (B, D, 1, 1)."""


def run(config: Config) -> list[Certificate]:
    """Certify, print each certificate, and write metrics.json and report.html.

    Returns:
      The certificates.

    Raises:
      ValueError: If a sampler does not exist, or none is named.
    """
    names = config.samplers
    if config.library != "none":
        names += adapters.names_of(config.library)
    if not names:
        raise ValueError(
            "name a sampler, such as package.module:function or diffjax:heun, or give "
            "--library"
        )
    if config.expect is not None:
        names_here = [name.partition(":")[2] for name in adapters.names_of("diffjax")]
        checks.choice("expect", config.expect, tuple(names_here))
    samplers = [adapters.resolve(name, config.arrays, config.images) for name in names]
    if config.order is not None:
        checks.integer("order", config.order, 1)
        samplers = [sampler._replace(order=config.order) for sampler in samplers]
    out = files.start(config)
    certificates = []
    with double_precision():
        solvers = known()
        with cli.progress(len(names) * PARTS, label="certifying", unit="part") as bar:
            for sampler in samplers:
                certificate = certify(
                    sampler,
                    solvers,
                    expected=config.expect,
                    progress=_shown(bar, sampler),
                )
                certificates.append(certificate)
                with bar.external_write_mode():
                    report.print_certificate(certificates[-1])
    files.write_results(out, results(certificates), shown=report.as_html(certificates))
    if len(certificates) > 1:
        save_figure(report.draw(certificates), out / "errors.png")
        report.print_standings(certificates)
    print(f"\nwrote {out / 'report.html'}")
    return certificates


def _shown(bar, sampler):
    def show(part):
        bar.set_postfix_str(f"{sampler.name}, {part}")
        bar.update()

    return show


def results(certificates: list[Certificate]) -> dict[str, Any]:
    """The certificates as JSON's values, by the name of the sampler."""
    return {c.sampler: report.as_dict(c) for c in certificates}


@functools.cache
def _tables(name):
    return identity.tables(adapters.resolve(name))


def known() -> list[identity.Known]:
    """The solvers of diffjax, whose tables are measured when they are needed."""
    solvers = []
    steps = len(identity.grids()[0]) - 1
    variants = tuple(f"diffjax:{name}" for name in adapters.VARIANTS)
    for name in adapters.names_of("diffjax") + variants:
        sampler = adapters.resolve(name)
        promise = sampler.evaluations
        calls = promise(steps, False) if promise is not None else None
        tables = functools.partial(_tables, name)
        _, _, shown = name.partition(":")
        solvers.append(identity.Known(shown, calls, sampler.draws > 0, tables))
    return solvers


if __name__ == "__main__":
    cli.main(run, Config, __doc__)
