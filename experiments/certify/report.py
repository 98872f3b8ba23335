"""Certificates as text, as JSON and as HTML."""

import html
import io
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.certify.certificate import Certificate, Finding
from experiments.shared import html_report

__all__ = [
    "as_dict",
    "as_html",
    "print_certificate",
    "print_standings",
]

SIGNS = {"pass": "✓", "fail": "✗", "note": "·"}
WIDTH = 88


def as_dict(certificate: Certificate) -> dict:
    """A certificate as JSON's values."""
    return {
        "passed": certificate.passed,
        "findings": {
            finding.name: {
                "verdict": finding.verdict,
                "text": finding.text,
                **finding.values,
            }
            for finding in certificate.findings
        },
    }


def print_certificate(certificate: Certificate) -> None:
    """Print every finding on its lines."""
    print(f"\n{certificate.sampler}: {_verdict(certificate)}")
    for finding in certificate.findings:
        head = f"  {SIGNS[finding.verdict]} {finding.name:18}"
        lines = textwrap.wrap(finding.text, WIDTH - len(head)) or [""]
        print(head + f"\n{'':{len(head)}}".join(lines))


def _verdict(certificate):
    failed = [f.name for f in certificate.findings if f.verdict == "fail"]
    return f"fails ({', '.join(failed)})" if failed else "passes"


def print_standings(certificates: Sequence[Certificate]) -> None:
    """Print one line per sampler."""
    print(f"\n{'sampler':52}{'':8}{'order':>6}  {'KL in nats at 8, 16, 32':24}same as")
    for certificate in certificates:
        named = {finding.name: finding for finding in certificate.findings}
        kls = _values(named, "distribution").get("kl", {})
        order = _values(named, "order").get("steps")
        same = ", ".join(_values(named, "identity").get("same", [])[:3])
        cells = " ".join(f"{kl:7.1e}" for kl in kls.values())
        verdict = "passes" if certificate.passed else "fails"
        shown = f"{order:6.2f}" if order is not None else f"{'':6}"
        print(f"{certificate.sampler:52}{verdict:8}{shown}  {cells:24}{same}".rstrip())


def _values(named, name):
    return named[name].values if name in named else {}


# --------------------------------------------------------------------------- HTML


def as_html(certificates: Sequence[Certificate]) -> str:
    """The certificates as HTML, for the page of the run."""
    return "\n".join(_section(certificate) for certificate in certificates)


def _section(certificate):
    rows = "\n".join(_row(finding) for finding in certificate.findings)
    name = html_report.label(certificate.sampler)
    verdict = html.escape(_verdict(certificate))
    return (
        f"<h3><code>{name}</code>: {verdict}</h3>\n"
        f'<table aria-label="findings">\n<tbody>\n{rows}\n</tbody></table>\n'
        f"{_drawing(certificate)}"
    )


def _row(finding: Finding) -> str:
    return (
        f'<tr><td class="{finding.verdict}">'
        f'<span role="img" aria-label="{finding.verdict}">{SIGNS[finding.verdict]}'
        f'</span></td><th scope="row">{html.escape(finding.name)}</th>'
        f"<td>{html.escape(finding.text)}</td></tr>"
    )


def _errors(certificate):
    """Steps and errors, or None where a logarithmic axis cannot show them."""
    if not certificate.errors:
        return None
    steps, errors = zip(*certificate.errors, strict=True)
    return (steps, errors) if np.isfinite(errors).all() and min(errors) > 0 else None


def _mark_steps(axis, steps):
    """A tick at each number of steps that was measured, and no other."""
    axis.xaxis.set_minor_locator(plt.NullLocator())
    axis.set_xticks(steps, [str(n) for n in steps])


def _drawing(certificate):
    """Error against steps, as an image in the page."""
    points = _errors(certificate)
    if points is None:
        return ""
    steps, errors = points
    named = next(f.values for f in certificate.findings if f.name == "order")
    figure, axis = plt.subplots(figsize=(4.5, 3))
    axis.loglog(steps, errors, "o-", label="measured")
    order = named.get("steps")
    if order is not None and order > 0:
        slope = errors[-1] * (steps[-1] / np.asarray(steps)) ** order
        axis.loglog(steps, slope, "k:", lw=1, label=f"order {order:.2f}")
        axis.legend(frameon=False)
    middle = np.sqrt(min(errors) * max(errors))
    axis.set_ylim(min(min(errors) / 2, middle / 4), max(max(errors) * 2, middle * 4))
    _mark_steps(axis, steps)
    axis.set(xlabel=named.get("axis", "steps"), ylabel="error (mixture or Gaussians)")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=130, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    points = ", ".join(f"{e:.2g} at {n}" for n, e in certificate.errors)
    return html_report.figure(png.getvalue(), f"Error against steps: {points}")


def draw(certificates: Sequence[Certificate]) -> Any:
    """Error against steps of several samplers in one axis.

    Args:
      certificates: Those without finite errors above 0 are left out.

    Returns:
      The figure.
    """
    curves = {c.sampler: points for c in certificates if (points := _errors(c))}
    figure, axis = plt.subplots(
        figsize=(7.5, max(3.5, 1 + 0.24 * len(curves))), layout="constrained"
    )
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, max(1, len(curves))))
    for (name, (steps, errors)), colour in zip(curves.items(), colours, strict=True):
        axis.loglog(steps, errors, "o-", ms=4, lw=1.2, color=colour, label=name)
    _mark_steps(axis, sorted({n for steps, _ in curves.values() for n in steps}))
    axis.set(
        xlabel="steps",
        ylabel="error (mixture or Gaussians)",
        title="Error of each sampler against its steps",
    )
    if curves:
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False)
    return figure
