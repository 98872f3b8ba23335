"""`certify`: tables of coefficients, faults by name, identities and verdicts."""

import inspect
import json
import pathlib
import re
import sys

import jax
import numpy as np
import pytest

from diffjax import schedules, solvers, targets
from docs.builder import blocks
from experiments.certify import __main__ as certify
from experiments.certify import adapters, coefficients, identity, measures, report
from experiments.certify.certificate import Certificate, Finding
from experiments.certify.certificate import certify as examine
from experiments.certify.recording import Sampler, double_precision, record
from experiments.shared import solvers as shared_solvers

# Samplers are written here as their users write them, in NumPy.


def pairs(sigmas):
    return zip(sigmas[:-1], sigmas[1:], strict=True)


def euler(denoiser, x, sigmas):
    for t, s in pairs(sigmas):
        x = x + (x - denoiser(x, t)) / t * (s - t)
    return x


def heun(denoiser, x, sigmas):
    for t, s in pairs(sigmas):
        first = (x - denoiser(x, t)) / t
        after = x + first * (s - t)
        if s == 0:
            return after
        x = x + (first + (after - denoiser(after, s)) / s) / 2 * (s - t)
    return x


def ancestral(denoiser, x, sigmas, normal=None):
    normal = normal or np.random.standard_normal
    for t, s in pairs(sigmas):
        share = (s / t) ** 2
        x = share * x + (1 - share) * denoiser(x, t)
        x = x + s * np.sqrt(1 - share) * normal(x.shape)
    return x


def with_hidden_noise(denoiser, x, sigmas):
    return ancestral(denoiser, x, sigmas, np.random.default_rng(5).standard_normal)


def alpha(sigma):
    return 1 / np.sqrt(1 + sigma**2)


def ddim_with_early_alpha(denoiser, x, sigmas):
    """DDIM on the variance-preserving chain, with α_t in place of α_s."""
    x = x * alpha(sigmas[0])
    for t, s in pairs(sigmas):
        denoised = denoiser(x / alpha(t), t)
        noise = (x - alpha(t) * denoised) / (t * alpha(t))
        x = alpha(t) * denoised + s * alpha(s) * noise
    return x / alpha(sigmas[-1])


def midpoint_without_half_step(denoiser, x, sigmas):
    for t, s in pairs(sigmas):
        middle = np.sqrt(t * s)
        denoiser(x, t)
        x = x + (x - denoiser(x, middle)) / middle * (s - t)
    return x


def midpoint_with_half_a_step(denoiser, x, sigmas):
    for t, s in pairs(sigmas):
        middle = np.sqrt(t * s)
        half = x + (x - denoiser(x, t)) / t * (middle - t)
        x = x + (half - denoiser(half, middle)) / middle * (s - t) / 2
    return x


def ancestral_without_noise(denoiser, x, sigmas):
    return ancestral(denoiser, x, sigmas, lambda shape: np.zeros(shape))


def euler_with_the_next_level(denoiser, x, sigmas):
    for i, (t, s) in enumerate(pairs(sigmas)):
        later = sigmas[min(i + 1, len(sigmas) - 2)]
        x = x + (x - denoiser(x, later)) / t * (s - t)
    return x


def two_steps(ratio_of):
    """DPM-Solver++(2M), whose ratio of two steps is given."""

    def dpmpp_2m(denoiser, x, sigmas):
        before, length = None, None
        for t, s in pairs(sigmas):
            denoised = denoiser(x, t)
            if s == 0:
                return denoised
            h = np.log(t / s)
            line = denoised
            if before is not None:
                line = denoised + (denoised - before) * ratio_of(h, length) / 2
            x = s / t * x + (1 - s / t) * line
            before, length = denoised, h
        return x

    return dpmpp_2m


def rescaled(denoiser, x, sigmas):
    for t, s in pairs(sigmas):
        denoised = np.clip(denoiser(x, t), -1, 1)
        x = denoised + (x - denoised) * s / t
    return x


def of(function):
    return Sampler(function.__name__, function, "numpy")


GRID = np.array([10.0, 3.0, 1.0, 0.4])


def test_a_table_of_ddim_is_its_closed_form():
    """The start keeps σ_k/σ_0. Output j gains σ_k (1/σ_{j+1} − 1/σ_j)."""
    table = coefficients.measure(of(euler), GRID)
    inverse = 1 / GRID
    gains = np.tril(np.ones((4, 3)), -1) * GRID[:, None] * np.diff(inverse)
    expected = np.concatenate([GRID[:, None] / GRID[0], gains], 1)
    np.testing.assert_allclose(table.states, expected, atol=1e-14)
    assert table.exact and not table.stochastic


def test_noise_is_read_off_or_estimated():
    """A posterior step keeps (s/t)² of earlier noise and adds s √(1 − (s/t)²)."""
    table = coefficients.measure(of(ancestral), GRID)
    shares = (GRID[1:] / GRID[:-1]) ** 2
    added = GRID[1:] * np.sqrt(1 - shares)
    expected = [added[0] * shares[1] * shares[2], added[1] * shares[2], added[2]]
    np.testing.assert_allclose(np.abs(table.noise[-1]), expected, atol=1e-14)
    hidden = coefficients.measure(of(with_hidden_noise), GRID)
    assert not hidden.exact
    # Four standard errors of a variance over WIDTH entries.
    tolerance = 4 * np.sqrt(2 / coefficients.WIDTH)
    variances = (hidden.noise**2).sum(1), (table.noise**2).sum(1)
    np.testing.assert_allclose(*variances, rtol=tolerance, atol=1e-12)


def test_random_numbers_come_back_after_a_run():
    normal = np.random.standard_normal
    coefficients.measure(of(ancestral), GRID)
    assert np.random.standard_normal is normal


def test_moments_are_those_of_the_exact_recursion():
    """On N(m, v) an Euler step multiplies the deviation by 1 + (s − t) t/(v + t²)."""
    mean, variance = measures.MEAN, measures.VARIANCE
    table = coefficients.measure(of(euler), GRID)
    factors = [1 + (s - t) * t / (variance + t**2) for t, s in pairs(GRID)]
    spread = np.prod(factors) ** 2 * (variance + GRID[0] ** 2)
    moments = coefficients.moments(table, mean, variance)
    np.testing.assert_allclose(moments, (mean, spread), rtol=1e-12)
    with double_precision():
        direct = measures.direct_distribution_error(of(euler), GRID)[0]
        np.testing.assert_allclose(
            direct, measures.distribution_errors(table), rtol=1e-9
        )


def test_the_mixture_is_that_of_the_exact_flow():
    x = np.random.default_rng(0).normal(size=(7, 2))
    with double_precision():
        target = targets.gaussian_mixture(
            measures.WEIGHTS, measures.MEANS, measures.SPREADS
        )
        exact = targets.denoiser(target, schedules.edm(0.1, 10.0))
        expected = jax.vmap(exact, (0, None))(x, 1.3)
    np.testing.assert_allclose(measures.mixture(x, 1.3), expected, rtol=1e-12)


def test_a_simulated_run_is_the_run():
    x = np.random.default_rng(0).normal(size=(5, 2))
    outputs = lambda call, rows, sigma: measures.mixture(rows, sigma)
    run = record(of(heun), x, GRID, outputs)
    table = coefficients.measure(of(heun), GRID)
    simulated = measures.simulate(table, x, measures.mixture)
    np.testing.assert_allclose(simulated, run.end, atol=1e-12)


@pytest.mark.parametrize(
    "sampler, words",
    [
        (ddim_with_early_alpha, "α_t stands where α_s belongs"),
        (midpoint_without_half_step, "the step to it is missing"),
        (midpoint_without_half_step, "output of call 1 of a step is not used"),
        (midpoint_with_half_a_step, "half of the step to it is missing"),
        (euler_with_the_next_level, "the noise level of another step"),
    ],
)
def test_a_wrong_sampler_has_its_mistake_named(sampler, words):
    table = coefficients.measure(of(sampler), measures.karras(8, 10.0, 0.1))
    faults = identity.faults(table)
    assert any(fault.recognised and words in fault.text for fault in faults)


@pytest.mark.parametrize("sampler", [euler, heun, ancestral])
def test_a_consistent_sampler_has_no_fault(sampler):
    table = coefficients.measure(of(sampler), measures.karras(8, 10.0, 0.1))
    assert identity.faults(table) == []
    signal, noise = coefficients.signal_and_noise(table)
    np.testing.assert_allclose(signal, 1, atol=1e-13)
    np.testing.assert_allclose(noise, 1, atol=1e-13)


def test_missing_noise_is_a_lower_level():
    table = coefficients.measure(of(ancestral_without_noise), GRID)
    [fault] = identity.faults(table)
    # (s/t)² t = 0.9 in the first step, where s = 3.
    assert "noise level is 0.9 in the first step" in fault.text


@pytest.mark.parametrize("sampler, order", [(euler, 1), (heun, 2), (ancestral, 1)])
def test_orders_are_those_of_the_methods(sampler, order):
    with double_precision():
        for grid in (measures.graded, measures.plain):
            assert abs(measures.order(of(sampler), grid)[0] - order) < 0.2


def known_by_hand():
    return [
        identity.Known(
            f.__name__, calls, f is ancestral, lambda f=f: identity.tables(of(f))
        )
        for f, calls in ((euler, 6), (heun, 12), (ancestral, 6))
    ]


def test_a_renamed_method_is_recognised_and_a_changed_one_is_not():
    def renamed(denoiser, x, sigmas):
        """Heun's method, its slopes in another order."""
        for t, s in pairs(sigmas):
            denoised = denoiser(x, t)
            after = denoised + (x - denoised) * s / t
            if s == 0:
                return denoised
            second = denoiser(after, s)
            x = x + (s - t) * (0.5 * (x - denoised) / t + 0.5 * (after - second) / s)
        return x

    best = identity.nearest(of(renamed), known_by_hand())[0]
    assert best.name == "heun" and best.where == "" and best.difference < 1e-13

    def changed(denoiser, x, sigmas):
        return heun(denoiser, x, sigmas) * 1.001

    best = identity.nearest(of(changed), known_by_hand())[0]
    assert best.name == "heun" and "at the result" in best.where


def verdicts(certificate):
    return {finding.name: finding.verdict for finding in certificate.findings}


def test_certificates_of_a_right_and_of_a_wrong_sampler():
    with double_precision():
        right = examine(of(heun), known_by_hand())
        wrong = examine(of(ddim_with_early_alpha), known_by_hand())
    assert right.passed
    assert verdicts(wrong)["consistency"] == verdicts(wrong)["order"] == "fail"
    for certificate in (right, wrong):
        # At σ = ∞ both divide by it.
        assert verdicts(certificate)["zero-terminal SNR"] == "note"
        assert "data:image/png;base64" in report.as_html([certificate])


def test_coefficients_that_ignore_the_lengths_show_on_uneven_steps():
    """A ratio of 1, as in iPNDM, has order 2 on even steps only."""
    with double_precision():
        for ratio, order in ((lambda h, last: h / last, 2), (lambda h, last: 1.0, 1)):
            sampler = of(two_steps(ratio))
            assert abs(measures.order(sampler, measures.graded)[0] - 2) < 0.2
            assert abs(measures.order(sampler, measures.uneven)[0] - order) < 0.2


@pytest.mark.slow
def test_noise_of_a_hidden_generator_is_no_fault():
    with double_precision():
        certificate = examine(of(with_hidden_noise), known_by_hand())
    assert certificate.passed
    assert verdicts(certificate)["order"] == "note"


def test_an_expected_method_is_required():
    with double_precision():
        for sampler, verdict in ((heun, "pass"), (euler, "fail")):
            certificate = examine(of(sampler), known_by_hand(), expected="heun")
            assert verdicts(certificate)["identity"] == verdict


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda denoiser, x, sigmas: x * np.nan, "not finite"),
        (lambda denoiser, x, sigmas: sys.exit(3), "SystemExit: 3"),
        (lambda denoiser, x, sigmas: x[:, :1], "must return the shape of x"),
    ],
)
def test_an_unusable_sampler_has_one_finding(function, words):
    certificate = examine(Sampler("f", function, "numpy"), [])
    [finding] = certificate.findings
    assert finding.verdict == "fail" and words in finding.text


def test_numbers_without_a_seed_are_no_dependence_on_rows():
    def unseeded(denoiser, x, sigmas):
        return ancestral(denoiser, x, sigmas, np.random.default_rng().standard_normal)

    certificate = examine(of(unseeded), [])
    texts = {finding.name: finding.text for finding in certificate.findings}
    assert "two equal runs differ" in texts["coefficients"]
    assert "two equal runs differ" in texts["batch"] and certificate.passed


def test_a_sampler_that_clips_has_no_table_but_an_error():
    with double_precision():
        certificate = examine(of(rescaled), known_by_hand())
    measured = {finding.name: finding for finding in certificate.findings}
    assert "clips" in measured["coefficients"].text
    assert measured["order"].verdict == "fail"


def test_a_sampler_that_raises_has_one_finding():
    def broken(denoiser, x, sigmas):
        raise KeyError("alphas")

    certificate = examine(of(broken), [])
    assert [f.verdict for f in certificate.findings] == ["fail"]
    assert "KeyError: 'alphas'" in certificate.findings[0].text


def test_rows_that_share_numbers_are_found():
    def centred(denoiser, x, sigmas):
        return euler(denoiser, x - 0.01 * x.mean(0), sigmas)

    measured = measures.batch_differences(of(centred))
    assert measured["rows"] > 1e-3 and measured["memory"] == 0
    measured = measures.batch_differences(of(ancestral))
    assert measured["rows"] == 0 and measured["size"] > 1e-3


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "ddim(1)"])
def test_our_solvers_have_the_tables_of_their_formulas(name):
    hand = {"ddim": euler, "ddim(1)": ancestral}.get(name)
    with double_precision():
        sampler = adapters.resolve(f"diffjax:{name}")
        table = coefficients.measure(sampler, identity.grids()[0])
        signal, noise = coefficients.signal_and_noise(table)
        np.testing.assert_allclose((signal, noise), 1, atol=1e-13)
        if hand is not None:
            other = coefficients.measure(of(hand), identity.grids()[0])
            assert identity.difference("", table, other).difference < 1e-13


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["heun", "unipc(3)", "dpmpp_2m_sde", "euler_maruyama", "seeds(2)"]
)
def test_our_solvers_pass(name, tmp_path):
    config = certify.Config(samplers=(f"diffjax:{name}",), out=tmp_path)
    [certificate] = certify.run(config)
    assert certificate.passed
    stored = json.loads((tmp_path / "metrics.json").read_text())
    same = stored[f"diffjax:{name}"]["findings"]["identity"]["same"]
    assert name in same


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, ours",
    [
        ("k_diffusion:heun", "heun"),
        ("k_diffusion:dpmpp_2m_sde", "dpmpp_2m_sde"),
        ("diffusers:HeunDiscreteScheduler", "heun"),
        ("diffusers:DDIMScheduler(eta=1.0)", "ddim(1)"),
    ],
)
def test_methods_of_other_libraries_are_recognised(name, ours):
    pytest.importorskip("torch")
    pytest.importorskip(name.partition(":")[0])
    sampler = adapters.resolve(name)
    with double_precision():
        matches = identity.nearest(sampler, certify.known())
    assert ours in [match.name for match in matches if not match.where]


@pytest.mark.parametrize(
    "name, words",
    [
        ("heun", "package.module:function"),
        ("diffjax:no_such", "no_such"),
        ("diffjax:heun(", "heun"),
        ("no.such.module:f", "cannot be imported"),
        ("math:no_such", "no_such"),
        ("math:pi", "must be a function"),
        ("antigravity_of_mine:f", "ModuleNotFoundError"),
    ],
)
def test_names_that_do_not_exist_are_named(name, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        adapters.resolve(name)


def test_a_run_needs_a_sampler(tmp_path):
    with pytest.raises(ValueError, match="name a sampler"):
        certify.run(certify.Config(out=tmp_path))


def test_the_page_escapes_names():
    finding = Finding("order", "fail", "a < b", {})
    page = report.as_html([Certificate("<lambda>", [finding], [])])
    assert "&lt;lambda&gt;" in page and "a &lt; b" in page and "<lambda>" not in page


def test_double_precision_ends():
    before = jax.config.jax_enable_x64
    with double_precision():
        assert jax.config.jax_enable_x64
    assert jax.config.jax_enable_x64 == before


ROOT = pathlib.Path(__file__).parents[1]


WITHOUT_CERTIFICATE = {
    *("`heunpp2` C", "`res_multistep` C", "`res_2s` C", "`seeds_2` C", "`seeds_3` C"),
    *("`gradient_estimation` C, γ = 1.5", "`seeds_2` C without noise"),
    *("`er_sde` C, order 3", "`er_sde` C, order 1, φ = ρ or ρ²", "`lcm` C", "`ddim` C"),
}
"""Rows of the table of names whose samplers are not installed."""

ARGUMENTS = {
    "": [""],
    "η = 1": ["(eta=1.0)"],
    "midpoint": [""],
    "heun": ["(solver_type='heun')"],
    "sde": ["(algorithm_type='sde-dpmsolver++')"],
    "order 3": ["(solver_order=3)"],
    "order 2 or 3": ["", "(solver_order=3)"],
}
"""Arguments of the certified samplers, by the words after the names of a row."""


def published(name):
    """The solver of a certificate, without the guard that other libraries lack.

    The steps of a certificate are too short for the guard to show.
    """
    if name in shared_solvers.SOLVERS:
        return shared_solvers.make(name, guarded=False)
    return eval(f"solvers.{name}")


def test_the_table_of_names_agrees_with_the_certificates():
    """A row that states no difference in coefficients names the solvers with the
    coefficients of the certificate, and no other row does.
    """
    page = (ROOT / "docs" / "pages" / "solvers" / "names.md").read_text("utf-8")
    stored = json.loads((ROOT / "experiments/results/certificates.json").read_text())
    rows = re.findall(r"^\| (`.*?) \| (.*?) \| ?(.*?) ?\|$", page, re.M)
    without = set()
    for theirs, ours, difference in rows:
        shown = [eval(f"solvers.{code}") for code in re.findall(r"`([^`]+)`", ours)]
        kind = re.sub(r"`\w+`", "", theirs).strip(" ,")
        assert difference.startswith("by formula") == (kind not in ARGUMENTS), theirs
        if kind not in ARGUMENTS:
            without.add(theirs)
            continue
        for name in re.findall(r"`(\w+)`", theirs):
            library = "diffusers" if name.endswith("Scheduler") else "k_diffusion"
            for arguments in ARGUMENTS[kind]:
                entry = stored[library][f"{library}:{name}{arguments}"]
                same = [published(n) for n in entry["findings"]["identity"]["same"]]
                if not difference or difference.startswith("the same coefficients"):
                    assert all(solver in same for solver in shown), (theirs, same)
                else:
                    assert not any(solver in same for solver in shown), (theirs, same)
    assert without == WITHOUT_CERTIFICATE


def test_the_names_of_web_uis_are_those_of_k_diffusion():
    page = (ROOT / "docs" / "pages" / "solvers" / "names.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| (`.*?) \| (.*?) \| ?.*? ?\|$", page, re.M))
    shown = re.findall(r"^\| [A-Z].*? \| (`.*?) \| (`.*?) \|$", page, re.M)
    assert len(shown) == 10
    for theirs, ours in shown:
        names = [theirs] if theirs in rows else theirs.split(", ")
        named = ", ".join(rows[name] for name in names)
        listed, solvers_there = (re.findall(r"`([^`]+)`", x) for x in (ours, named))
        assert set(listed) <= set(solvers_there), theirs


def test_the_table_of_names_names_methods_as_published():
    """Without the guard, which other libraries lack."""
    page = (ROOT / "docs" / "pages" / "solvers" / "names.md").read_text("utf-8")
    rows = re.findall(r"^\| `.*? \| (.*?) \| ?.*? ?\|$", page, re.M)
    for code in re.findall(r"`([^`]+)`", " ".join(rows)):
        factory = getattr(solvers, code.partition("(")[0])
        has_guard = "guarded" in inspect.signature(factory).parameters
        assert has_guard == ("guarded=False" in code), code


PAGE = pathlib.Path(__file__).parents[1] / "docs/pages/tutorials/benchmark.md"


@pytest.mark.slow
def test_the_certificate_of_the_tutorial_begins_as_it_shows(
    tmp_path, monkeypatch, capsys
):
    page = PAGE.read_text(encoding="utf-8")
    (tmp_path / "mysampler.py").write_text(blocks.blocks(page)[0].source, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mysampler", raising=False)
    known = [entry for entry in certify.known() if entry.name == "dpmpp_2m"]
    with double_precision():
        certificate = examine(adapters.resolve("mysampler:two_step"), known)
    report.print_certificate(certificate)
    shown = re.search(r"```text\n(mysampler:two_step: .*?)```", page, re.DOTALL)[1]
    lines = capsys.readouterr().out.strip().splitlines()[: len(shown.splitlines())]
    # The difference of the tables is one of rounding.
    texts = (
        re.sub(r"difference \S+e-1\d", "", text) for text in ("\n".join(lines), shown)
    )
    fault = blocks.difference(*texts)
    assert not fault, fault


def test_the_figure_shows_the_errors_of_each_sampler():
    """One curve each. Errors that a logarithmic axis cannot show are left out."""
    points = {"a:first": ((4, 0.1), (8, 0.025)), "b:second": ((4, 0.2), (16, 0.05))}
    lost = {"c:nan": ((4, np.nan), (8, 0.1)), "d:zero": ((4, 0.1), (8, 0.0)), "e": ()}
    made = [
        Certificate(name, [], list(errors))
        for name, errors in {**points, **lost}.items()
    ]
    (axis,) = report.draw(made).axes
    shown = {
        line.get_label(): tuple(map(tuple, line.get_xydata())) for line in axis.lines
    }
    assert shown == points
    assert list(axis.get_xticks()) == [4, 8, 16]
