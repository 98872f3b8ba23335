"""The certificate of one sampler: every finding, with its verdict."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from experiments.certify import identity, measures
from experiments.certify.coefficients import (
    NotAffine,
    NotFinite,
    measure,
    moments,
    signal_and_noise,
)
from experiments.certify.recording import Sampler, record

__all__ = ["Certificate", "Finding", "certify"]

CONSISTENT = 1e-5
"""Deviation below which a constant output is carried exactly. float32 has 1e-7."""


class Finding(NamedTuple):
    """One line of a certificate.

    Attributes:
      name: What was examined.
      verdict: "pass", "fail", or "note" for a property that is not required.
      text: The result, in a sentence.
      values: Its numbers, for JSON.
    """

    name: str
    verdict: str
    text: str
    values: dict[str, Any]


class Certificate(NamedTuple):
    """All findings of a sampler.

    Attributes:
      sampler: Its name.
      findings: In the order of the report.
      errors: (total steps, error) on the grids of the order, for a figure.
    """

    sampler: str
    findings: list[Finding]
    errors: list[tuple[int, float]]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(finding.verdict != "fail" for finding in self.findings)


def certify(
    sampler: Sampler,
    known: Iterable[identity.Known],
    *,
    expected: str | None = None,
    progress: Callable[[str], None] = lambda part: None,
) -> Certificate:
    """Examine a sampler.

    Args:
      sampler: The sampler.
      known: The solvers that it is compared with, see `identity.nearest`.
      expected: Name of the solver that it should be, None for any.
      progress: Called with the name of each part before it.

    Returns:
      The certificate. An exception of the sampler becomes a finding.
    """
    errors: list[tuple[int, float]] = []
    progress("coefficients")
    first = _guarded("coefficients", lambda: _coefficients(sampler))
    parts: dict[str, Callable[[], Finding]] = {}
    if first.verdict == "pass":
        parts = {
            "identity": lambda: _identity(sampler, known, expected),
            "consistency": lambda: _consistency(sampler),
            "order": lambda: _order(sampler, errors),
            "uneven steps": lambda: _uneven_steps(sampler),
            "distribution": lambda: _distribution(sampler),
            "evaluations": lambda: _evaluations(sampler),
            "last step": lambda: _last_step(sampler),
            "zero-terminal SNR": lambda: _zero_terminal(sampler),
            "partial start": lambda: _partial_start(sampler),
            "batch": lambda: _batch(sampler),
        }
    elif first.verdict == "note":
        parts = {
            "order": lambda: _direct_order(sampler, errors),
            "distribution": lambda: _direct_distribution(sampler),
            "batch": lambda: _batch(sampler),
        }
    findings = [first]
    for name, part in parts.items():
        progress(name)
        findings.append(_guarded(name, part))
    return Certificate(sampler.name, findings, errors)


def _guarded(name, part):
    """A finding, also where the sampler raises. It may raise anything."""
    try:
        return part()
    except NotAffine as reason:
        return Finding(name, "note", f"not measured: {reason}", {})
    except NotFinite as reason:
        return Finding(name, "fail", str(reason), {})
    except (Exception, SystemExit) as error:
        text = f"raises {type(error).__name__}: {_first_line(error)}"
        return Finding(name, "fail", text, {})


def _first_line(error):
    return (str(error).splitlines() or [""])[0]


def _coefficients(sampler):
    table = measure(sampler, measures.karras(6, 10.0, 0.1))
    noise = (
        "no noise"
        if not table.stochastic
        else f"{table.noise.shape[1]} draws, read off"
        if table.exact
        else "noise that comes from elsewhere, estimated"
    )
    return Finding(
        "coefficients",
        "pass",
        f"affine in start, outputs and noise: {len(table.sigmas)} calls in 6 steps, "
        f"{noise}",
        {"stochastic": table.stochastic, "exact_noise": table.exact},
    )


def _identity(sampler, known, expected):
    matches = identity.nearest(sampler, known)
    if expected is not None:
        return _expected(matches, expected)
    same = [match for match in matches if not match.where]
    values = {"same": [match.name for match in same]}
    if same:
        names = ", ".join(match.name for match in same)
        values["difference"] = max(match.difference for match in same)
        text = f"the same as {names} (difference {values['difference']:.0e})"
        return Finding("identity", "note", text, values)
    if not matches:
        return Finding("identity", "note", "nothing to compare it with", values)
    closest = max(matches, key=lambda match: (match.same[0], -match.difference))
    agree, total = closest.same
    values |= {"nearest": closest.name, "agree": agree, "where": closest.where}
    text = (
        f"no known solver. Its first {agree} of {total} states are those of "
        f"{closest.name}, then {closest.where}"
        if agree > 1
        else "no known solver"
    )
    return Finding("identity", "note", text, values)


def _expected(matches, expected):
    match = next((match for match in matches if match.name == expected), None)
    if match is None:
        text = f"not {expected}, which makes another number of calls or has noise"
        return Finding("identity", "fail", text, {"expected": expected})
    agree, total = match.same
    values = {"expected": expected, "agree": agree, "where": match.where}
    text = (
        f"not {expected}. The first {agree} of {total} states are the same, then "
        f"{match.where}"
    )
    if not match.where:
        text = f"the same as {expected} (difference {match.difference:.0e})"
    return Finding("identity", "fail" if match.where else "pass", text, values)


def _consistency(sampler):
    grid = measures.karras(8, 10.0, 0.1)
    table = measure(sampler, grid)
    signal, noise = signal_and_noise(table)
    apart = float(np.nanmax(np.abs([signal - 1, noise - 1])))
    tolerance = CONSISTENT if table.exact else 0.05
    faults = identity.faults(table)
    named = [fault for fault in faults if fault.recognised]
    values = {"deviation": apart, "faults": [fault.text for fault in faults]}
    if apart < tolerance and not faults:
        text = "a constant denoised output is carried exactly"
        return Finding("consistency", "pass", text, values)
    _, errors = measures.order(sampler, measures.plain)
    if not named and errors[-1] < 0.7 * errors[0] and errors[-1] < 0.2:
        text = (
            f"a constant denoised output is carried with an error of {apart:.1e} in 8 "
            "steps, which falls with the steps"
        )
        return Finding("consistency", "note", text, values)
    text = ". ".join(fault.text for fault in named or faults)
    text = text or f"a constant output is changed by {apart:.1e}"
    return Finding("consistency", "fail", text, values)


def _order(sampler, errors):
    steady, of_graded = measures.order(sampler, measures.graded)
    whole, of_plain = measures.order(sampler, measures.plain)
    errors += zip(measures.ORDER_STEPS, of_plain, strict=True)
    table = measure(sampler, measures.plain(4))
    kind = "weak order" if table.stochastic else "order"
    values = {"steps": steady, "whole": whole, "declared": sampler.order}
    values |= {"errors": of_plain, "errors_graded": of_graded}
    if np.isnan(steady):
        listed = ", ".join(f"{error:.1e}" for error in of_graded)
        falls = of_graded[-1] < max(0.7 * of_graded[0], 1e-5)
        reason = "the noise is estimated" if not table.exact else "rounding"
        text = f"{kind} not measured ({reason}), errors {listed}"
        return Finding("order", "note" if falls else "fail", text, values)
    problem = "on Gaussians" if table.stochastic else "on a mixture"
    text = f"{kind} {steady:.2f} {problem}, {whole:.2f} where all steps are alike"
    required = 0.8 if sampler.order is None else sampler.order - 0.2
    if sampler.order is not None:
        text += f", declared {sampler.order}"
    # A formula that loses digits on short steps may do on the other grid.
    verdict = "pass" if max(steady, whole) >= required else "fail"
    return Finding("order", verdict, text, values)


def _uneven_steps(sampler):
    even, _ = measures.order(sampler, measures.graded)
    order, errors = measures.order(sampler, measures.uneven)
    values = {"order": order, "errors": errors}
    if np.isnan(order) or np.isnan(even):
        return Finding("uneven steps", "note", "order not measured", values)
    text = f"order {order:.2f} where steps are alternately 1 and {measures.UNEVEN} long"
    if order < even - 0.5:
        text += ": the coefficients do not follow the lengths of the steps"
        return Finding("uneven steps", "note", text, values)
    return Finding("uneven steps", "pass", text, values)


def _distribution(sampler):
    kls, steps = {}, {}
    for budget in measures.BUDGETS:
        steps[budget], table = measures.steps_for(sampler, budget)
        if table is not None:
            kls[budget] = measures.distribution_errors(table)
    listed = ", ".join(f"{kl:.2g} at {budget}" for budget, kl in kls.items())
    text = f"KL on a Gaussian, in nats by evaluations: {listed}"
    values = {"kl": kls, "steps": steps}
    return Finding("distribution", _verdict_of_numbers(kls.values()), text, values)


def _verdict_of_numbers(numbers):
    """ "note", since no bound holds for all methods, or "fail" for none."""
    return "note" if np.isfinite(list(numbers)).all() else "fail"


def _direct_order(sampler, errors):
    if not measures.repeats(sampler):
        raise NotAffine("its noise cannot be followed without a table")
    runs = [measures.direct_error(sampler, measures.plain(n)) for n in (4, 16, 40)]
    errors += [(calls, error) for error, calls in runs]
    listed = ", ".join(f"{error:.1e} with {calls}" for error, calls in runs)
    text = f"error on a mixture, by calls: {listed}"
    values: dict[str, Any] = {"errors": [error for error, _ in runs]}
    values |= {"calls": [calls for _, calls in runs], "axis": "calls"}
    falls = runs[-1][0] < 0.7 * runs[0][0] or runs[-1][0] < 1e-3
    return Finding("order", "pass" if falls else "fail", text, values)


def _direct_distribution(sampler):
    if not measures.repeats(sampler):
        raise NotAffine("its noise cannot be followed without a table")
    runs = [
        measures.direct_distribution_error(sampler, measures.karras(n))
        for n in measures.BUDGETS
    ]
    listed = ", ".join(f"{kl:.2g} with {calls}" for kl, calls in runs)
    text = f"KL of the moments on a Gaussian, in nats by calls: {listed}"
    values = {"kl": {calls: kl for kl, calls in runs}}
    verdict = _verdict_of_numbers([kl for kl, _ in runs])
    return Finding("distribution", verdict, text, values)


def _evaluations(sampler):
    counts = {n: len(measure(sampler, measures.karras(n)).sigmas) for n in (4, 8)}
    try:
        to_zero = len(measure(sampler, np.append(measures.karras(3), 0.0)).sigmas)
    except NotFinite:
        to_zero = None
    values = {"calls": counts, "calls_to_zero": to_zero}
    text = f"{counts[4]} calls in 4 steps"
    if to_zero is not None:
        text += f", {to_zero} where the last of 4 ends at 0"
    if sampler.evaluations is None:
        return Finding("evaluations", "note", text, values)
    promised = {n: sampler.evaluations(n, False) for n in counts}
    kept = promised == counts and sampler.evaluations(4, True) == to_zero
    text += ", as promised" if kept else f", promised {promised}"
    return Finding("evaluations", "pass" if kept else "fail", text, values)


def _last_step(sampler):
    grid = np.append(measures.karras(5, 10.0, 0.1), 0.0)
    try:
        table = measure(sampler, grid)
    except NotAffine as reason:
        return Finding("last step", "fail", f"to σ = 0: {reason}", {})
    at_zero = int((table.sigmas == 0).sum())
    exact = measures.MEAN, measures.VARIANCE
    error = measures.kl(*moments(table, *exact), exact)
    last = np.zeros(table.states.shape[1])
    last[-1] = 1.0
    returns = np.abs(table.states[-1] - last).max() < CONSISTENT
    quiet = np.abs(table.noise[-1]).max(initial=0) < CONSISTENT
    values = {"kl": error, "calls_at_zero": at_zero, "denoised": bool(returns)}
    text = (
        "to σ = 0 it returns the last denoised output"
        if returns and quiet
        else "to σ = 0 it adds noise"
        if not quiet
        else "to σ = 0 it returns another combination than the last denoised output"
    )
    if at_zero:
        text += f", after {at_zero} calls at σ = 0"
    verdict = "pass" if returns and quiet and not at_zero else "note"
    if not (quiet and np.isfinite(error)):
        verdict = "fail"
    return Finding("last step", verdict, f"{text}. KL {error:.2g} nats", values)


def _zero_terminal(sampler):
    """A start of pure noise, σ = ∞, must do as well as one at a finite level."""
    rest = measures.karras(7, 40.0, 0.05)
    exact = measures.MEAN, measures.VARIANCE + rest[-1] ** 2
    name = "zero-terminal SNR"
    try:
        table = measure(sampler, np.append(np.inf, rest))
        error = measures.kl(*moments(table, measures.MEAN, measures.VARIANCE), exact)
    except (NotAffine, NotFinite):
        error = float("nan")
    except Exception as raised:
        text = f"no start at σ = ∞: {type(raised).__name__}: {_first_line(raised)}"
        return Finding(name, "note", text, {"kl": None})
    from_finite = measures.distribution_errors(measure(sampler, rest))
    values = {"kl": error, "kl_from_40": from_finite}
    right = error < 2 * from_finite + 0.01
    if right:
        return Finding(name, "pass", f"starts at σ = ∞, KL {error:.2g} nats", values)
    if np.isnan(error):
        text = "no start at σ = ∞: it returns no number, and raises nothing"
    else:
        text = (
            f"no start at σ = ∞: it returns KL {error:.2g} nats, from σ = 40 "
            f"{from_finite:.2g}, and raises nothing"
        )
    return Finding(name, "note", text, values)


def _partial_start(sampler):
    """A start in the middle of a grid, as for editing and for image to image."""
    grid = measures.karras(14)
    middle = 6
    error = measures.distribution_errors(measure(sampler, grid[middle:]))
    values: dict[str, Any] = {"kl": error, "sigma": grid[middle]}
    text = f"from σ = {grid[middle]:.2f} of a grid: KL {error:.2g} nats"
    if sampler.partial is not None:
        x = grid[middle] * np.random.default_rng(0).normal(size=(2, 2))
        outputs = lambda call, rows, sigma: measures.mixture(rows, sigma)
        fresh = record(sampler, x, grid[middle:], outputs).end
        begun = record(sampler, x, grid, outputs, begin=middle).end
        apart = float(np.abs(fresh - begun).max())
        values["begin_index"] = apart
        text += (
            f". Begun at step {middle + 1} of the whole grid it differs by {apart:.1e}"
        )
        verdict = "pass" if apart < 1e-4 and np.isfinite(error) else "fail"
        return Finding("partial start", verdict, text, values)
    return Finding("partial start", _verdict_of_numbers([error]), text, values)


def _batch(sampler):
    apart = measures.batch_differences(sampler)
    differs = {name: not size < 1e-6 for name, size in apart.items()}
    if differs["equal"]:
        text = (
            "not measured: two equal runs differ. It keeps a state, or draws numbers "
            "without a seed"
        )
        return Finding("batch", "note", text, apart)
    words = {
        "memory": "a run depends on the run before it",
        "rows": "a row depends on the other rows",
        "size": "the noise of a row depends on the size of the batch",
    }
    causes = [words[name] for name in words if differs[name]]
    text = ". ".join(causes) or "each row depends on itself alone, at any batch size"
    bad = differs["memory"] or differs["rows"]
    verdict = "fail" if bad else "note" if causes else "pass"
    return Finding("batch", verdict, text, apart)
