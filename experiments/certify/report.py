"""Certificates as text, as JSON and as one page of HTML."""

import html
import io
import pathlib
import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from experiments.certify.certificate import Certificate, Finding

__all__ = [
    "as_dict",
    "page",
    "print_certificate",
    "print_standings",
    "write_page",
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


STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto;
  padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem;
  border-top: 1px solid #8886; }
.pass { color: #1a7f37; } .fail { color: #d1242f; font-weight: bold; }
.note { color: #888; }
svg { max-width: 26rem; height: auto; background: white; }
"""


def page(certificates: Sequence[Certificate]) -> str:
    """One page with every certificate. It needs no other file."""
    parts = "\n".join(_section(certificate) for certificate in certificates)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Certificates of samplers</title><style>{STYLE}</style></head>\n"
        f"<body>\n<h1>Certificates of samplers</h1>\n{parts}\n</body></html>\n"
    )


def _section(certificate):
    rows = "\n".join(_row(finding) for finding in certificate.findings)
    name = html.escape(certificate.sampler)
    verdict = html.escape(_verdict(certificate))
    return (
        f"<h2><code>{name}</code>: {verdict}</h2>\n"
        f"<table>\n{rows}\n</table>\n{_drawing(certificate)}"
    )


def _row(finding: Finding) -> str:
    return (
        f'<tr><td class="{finding.verdict}">{SIGNS[finding.verdict]}</td>'
        f"<th>{html.escape(finding.name)}</th>"
        f"<td>{html.escape(finding.text)}</td></tr>"
    )


def _drawing(certificate):
    """Error against steps, as SVG in the page."""
    if not certificate.errors:
        return ""
    steps, errors = zip(*certificate.errors, strict=True)
    if not (np.isfinite(errors).all() and min(errors) > 0):
        return ""
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
    axis.xaxis.set_minor_locator(plt.NullLocator())
    axis.set_xticks(steps, [str(n) for n in steps])
    axis.set(xlabel=named.get("axis", "steps"), ylabel="error (mixture or Gaussians)")
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight")
    plt.close(figure)
    drawing = text.getvalue()
    return drawing[drawing.index("<svg") :]


def write_page(certificates: Sequence[Certificate], path: pathlib.Path) -> None:
    """Write the page."""
    path.write_text(page(certificates), encoding="utf-8")
