"""Valid calls of the public functions, and the bad values that a fuzz puts in place of each of their arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffjax as dj
from diffjax import (
    ddpm,
    divergences,
    energies,
    flows,
    grids,
    guidance,
    inverse,
    langevin,
    losses,
    metrics,
    ncsn,
    networks,
    noise,
    numerics,
    predictions,
    quadrature,
    schedules,
    sde,
    solvers,
    targets,
    training,
    tuning,
    vaes,
)  # fmt: skip


def linear(x, t=0.0, *condition):
    """A denoiser, score or velocity that is cheap."""
    return -0.5 * x


def quadratic(x):
    """An energy."""
    return 0.5 * jnp.sum(x**2)


def calls():
    """name -> (function, its arguments by name), each of which is valid and cheap."""
    key = jax.random.key(0)
    vp = schedules.vp_linear()
    chain = schedules.from_betas(np.linspace(1e-3, 0.2, 20))
    ladder = schedules.from_sigmas(np.geomspace(0.1, 5.0, 6))
    mixture = targets.gaussian_mixture([0.4, 0.6], [[1.0, 0.0], [-1.0, 0.5]], [0.4, 0.7])
    line = targets.gaussian_mixture([0.4, 0.6], [[1.0], [-1.0]], [0.4, 0.7])
    wide = targets.gaussian([0.0], 1.5)
    denoiser = targets.denoiser(mixture, vp)
    x, xs = np.array([0.3, -0.2], np.float32), np.linspace(-1, 1, 12, dtype=np.float32).reshape(6, 2)
    grid = np.linspace(1.0, 1e-2, 5)
    operator = inverse.matrix([[1.0, 0.5]])
    kernel = langevin.mala(mixture, 0.1)
    normal = flows.standard_normal((4,))
    flow = flows.flow(normal, flows.affine(np.zeros(4), np.ones(4)))
    path = flows.path(schedules.rectified_flow())
    levels = np.linspace(-1, 1, 4)
    pixels = levels[[0, 1, 3]]
    pixel_denoiser = lambda x, t: 0.5 * x  # noqa: E731
    process = sde.forward(vp)
    knots = np.linspace(-1, 1, 4)
    tree = {"w": np.ones((3, 2), np.float32)}
    y = np.array([0.4])
    pair = {"p": wide, "q": line}
    rows = {
        "schedules.vp_linear": (schedules.vp_linear, dict(beta_min=0.1, beta_max=20.0)),
        "schedules.vp_cosine": (schedules.vp_cosine, dict(offset=0.008)),
        "schedules.sub_vp": (schedules.sub_vp, dict(beta_min=0.1, beta_max=20.0)),
        "schedules.ve": (schedules.ve, dict(sigma_min=0.01, sigma_max=50.0)),
        "schedules.edm": (schedules.edm, dict(sigma_min=0.002, sigma_max=80.0)),
        "schedules.rectified_flow": (schedules.rectified_flow, dict(t_max=0.999)),
        "schedules.learned": (schedules.learned, dict(key=key, hidden=4, log_snr_max=13.0, log_snr_min=-5.0)),
        "schedules.from_betas": (schedules.from_betas, dict(betas=np.linspace(1e-3, 0.2, 20))),
        "schedules.from_sigmas": (schedules.from_sigmas, dict(sigmas=np.geomspace(0.1, 5.0, 6))),
        "schedules.log_snr": (schedules.log_snr, dict(schedule=vp, t=0.5)),
        "schedules.time_of_log_snr": (schedules.time_of_log_snr, dict(schedule=vp, log_snr=0.5)),
        "schedules.drift_coefficient": (schedules.drift_coefficient, dict(schedule=vp, t=0.5)),
        "schedules.perturb": (schedules.perturb, dict(schedule=vp, x0=x, t=0.5, noise=x)),
        "schedules.prior_std": (schedules.prior_std, dict(schedule=vp)),
        "numerics.phi": (numerics.phi, dict(order=2, z=0.3)),
        "numerics.dequantise": (numerics.dequantise, dict(key=key, x=x, width=0.1)),
        "numerics.bits_per_dim": (numerics.bits_per_dim, dict(log_prob=-3.0, x_shape=(2,), bins=8, width=0.1)),
        "noise.normal": (noise.normal, dict(key=key, counter=0, shape=(2,))),
        "noise.brownian": (noise.brownian, dict(key=key, start=0.0, end=1.0, shape=(2,))),
        "targets.gaussian": (targets.gaussian, dict(mean=[0.0, 1.0], scale=0.5)),
        "targets.gaussian_mixture": (
            targets.gaussian_mixture,
            dict(weights=[0.4, 0.6], means=[[1.0, 0.0], [-1.0, 0.5]], scales=[0.4, 0.7]),
        ),
        "targets.empirical": (targets.empirical, dict(data=xs)),
        "targets.uniform_boxes": (targets.uniform_boxes, dict(weights=[1.0], lower=[[0.0, 0.0]], upper=[[1.0, 2.0]])),
        "targets.circles": (targets.circles, dict(std=0.24, nodes=16)),
        "targets.moons": (targets.moons, dict(std=0.2, nodes=16)),
        "targets.energy": (targets.energy, dict(function=quadratic, log_normaliser=0.0)),
        "targets.denoiser": (targets.denoiser, dict(target=mixture, schedule=vp)),
        "targets.log_prob": (mixture.log_prob, dict(x=x)),
        "targets.sample": (mixture.sample, dict(key=key)),
        "targets.noised": (mixture.noised, dict(schedule=vp, t=0.5)),
        "quadrature.rule": (quadrature.rule, dict(bounds=[[-1.0, 1.0]], points=8)),
        "quadrature.integrate": (quadrature.integrate, dict(function=quadratic, bounds=[[-1.0, 1.0]], points=8)),
        "quadrature.log_integral": (
            quadrature.log_integral,
            dict(log_density=wide.log_prob, bounds=[[-9.0, 9.0]], points=64),
        ),
        "grids.uniform": (grids.uniform, dict(schedule=vp, steps=4)),
        "grids.quadratic": (grids.quadratic, dict(schedule=vp, steps=4)),
        "grids.log_snr": (grids.log_snr, dict(schedule=vp, steps=4)),
        "grids.polyexponential": (grids.polyexponential, dict(schedule=vp, steps=4, rho=1.5)),
        "grids.karras": (grids.karras, dict(schedule=vp, steps=4, rho=7.0)),
        "grids.align_your_steps": (grids.align_your_steps, dict(schedule=schedules.edm(), steps=4, table="sdxl")),
        "grids.from_noise_ratios": (grids.from_noise_ratios, dict(schedule=vp, ratios=[5.0, 1.0, 0.1])),
        "grids.ddpm": (grids.ddpm, dict(schedule=chain, steps=4, spacing="leading", steps_offset=0)),
        "grids.from_indices": (grids.from_indices, dict(schedule=chain, indices=[20, 10, 1])),
        "grids.to_zero": (grids.to_zero, dict(grid=grid)),
        "predictions.denoiser": (
            predictions.denoiser,
            dict(schedule=vp, net=linear, kind="noise", sigma_data=0.5, inputs="raw"),
        ),
        "predictions.categorical": (predictions.categorical, dict(schedule=vp, net=linear, levels=levels)),
        "predictions.score": (predictions.score, dict(schedule=vp, denoiser=linear)),
        "predictions.variance": (predictions.variance, dict(schedule=vp, denoiser=denoiser)),
        "sde.forward": (sde.forward, dict(schedule=vp)),
        "sde.reverse": (sde.reverse, dict(schedule=vp, denoiser=linear, noise=1.0)),
        "sde.probability_flow": (sde.probability_flow, dict(schedule=vp, denoiser=linear)),
        "sde.solve_fokker_planck": (
            sde.solve_fokker_planck,
            dict(sde=process, p=np.full(8, 1 / 8), edges=np.linspace(-2, 2, 9), ts=np.linspace(0.1, 0.2, 3)),
        ),
        "solvers.adaptive": (solvers.adaptive, dict(rtol=1e-3, atol=1e-3, max_steps=64)),
        "solvers.adaptive_sde": (solvers.adaptive_sde, dict(rtol=1e-2, atol=1e-2, max_steps=64)),
        "solvers.ddim": (solvers.ddim, dict(eta=0.5)),
        "solvers.ddpm": (solvers.ddpm, dict(variance="posterior")),
        "solvers.edm_stochastic": (
            solvers.edm_stochastic,
            dict(churn=10.0, noise_min=0.05, noise_max=50.0, noise_scale=1.0),
        ),
        "solvers.annealed_langevin": (solvers.annealed_langevin, dict(corrections=3, step_size=0.2)),
        "solvers.picard": (solvers.picard, dict(solver=solvers.ddim(), window=4, tolerance=1e-3)),
        "solvers.predictor_corrector": (
            solvers.predictor_corrector,
            dict(predictor=solvers.reverse_diffusion(), corrections=1, snr=0.16, norms="expected"),
        ),
        "solvers.restart": (
            solvers.restart,
            dict(solver=solvers.heun(), t_low=0.06, t_high=0.3, repeats=2, steps=4),
        ),
        "solvers.dpm_solver": (solvers.dpm_solver, dict(order=2)),
        "solvers.deis": (solvers.deis, dict(order=3, coordinate="t")),
        "solvers.sa_solver": (solvers.sa_solver, dict(predictor_order=2, corrector_order=2, eta=1.0)),
        "solvers.unipc": (solvers.unipc, dict(order=2, variant="bh2")),
        "solvers.integrate": (
            solvers.integrate,
            dict(key=None, solver=solvers.euler(), problem=linear, x=x, ts=grid, path=False, info=False),
        ),
        "solvers.steps_within": (solvers.steps_within, dict(solver=solvers.heun(), evaluations=8, to_zero=False)),
        "losses.sample_times": (losses.sample_times, dict(key=key, count=4, schedule=vp)),
        "losses.batch_loss": (
            losses.batch_loss,
            dict(key=key, prediction=predictions.denoiser(vp, linear, "noise"), x0=xs, weighting="uniform"),
        ),
        "ddpm.linear_betas": (ddpm.linear_betas, dict(steps=20, first=1e-4, last=0.02)),
        "ddpm.cosine_betas": (ddpm.cosine_betas, dict(steps=20, offset=0.008, clip=0.999)),
        "ddpm.sigmoid_betas": (ddpm.sigmoid_betas, dict(steps=20, first=1e-4, last=0.02, reach=6.0)),
        "ddpm.betas_of": (ddpm.betas_of, dict(schedule=vp, steps=20)),
        "ddpm.elbo": (ddpm.elbo, dict(key=key, denoiser=pixel_denoiser, chain=chain, x=pixels, levels=levels)),
        "ddpm.continuous_elbo": (
            ddpm.continuous_elbo,
            dict(key=key, denoiser=pixel_denoiser, schedule=vp, x=pixels, count=4, levels=levels),
        ),
        "ddpm.forward_step": (ddpm.forward_step, dict(chain=chain, x=x, index=3)),
        "ddpm.posterior": (ddpm.posterior, dict(chain=chain, x=x, x0=x, index=3)),
        "ddpm.simple_loss": (ddpm.simple_loss, dict(key=key, denoiser=linear, chain=chain, x=x, index=3)),
        "ddpm.hybrid_loss": (
            ddpm.hybrid_loss,
            dict(key=key, denoiser=ddpm.paired(linear, linear), chain=chain, x=x, bound_weight=1e-3),
        ),
        "ddpm.loss_history": (ddpm.loss_history, dict(steps=20, length=3)),
        "ddpm.interpolate": (
            ddpm.interpolate,
            dict(key=key, denoiser=linear, chain=chain, start=x, end=x + 1, weights=[0.5], index=5),
        ),
        "ncsn.geometric_sigmas": (ncsn.geometric_sigmas, dict(levels=5, sigma_min=0.1, sigma_max=5.0)),
        "ncsn.overlapping_sigmas": (
            ncsn.overlapping_sigmas,
            dict(dimension=8, sigma_min=0.1, sigma_max=5.0, overlap=0.5),
        ),
        "ncsn.score_loss": (ncsn.score_loss, dict(key=key, denoiser=linear, ladder=ladder, x=x, index=3)),
        "langevin.ula": (langevin.ula, dict(target=mixture, step_size=0.1)),
        "langevin.mala": (langevin.mala, dict(target=mixture, step_size=0.1)),
        "langevin.baoab": (langevin.baoab, dict(target=mixture, step_size=0.1, friction=1.0)),
        "langevin.run": (langevin.run, dict(key=key, kernel=kernel, x=x, steps=4, thinning=1, warm_up=1)),
        "langevin.run_many": (langevin.run_many, dict(key=key, kernel=kernel, xs=xs, steps=4, thinning=1, warm_up=1)),
        "langevin.effective_sample_size": (langevin.effective_sample_size, dict(samples=np.random.rand(2, 16, 1))),
        "langevin.r_hat": (langevin.r_hat, dict(samples=np.random.rand(2, 16, 1), ranks=True)),
        "langevin.standard_error": (langevin.standard_error, dict(samples=np.random.rand(2, 16, 1))),
        "energies.exact": (energies.exact, dict(model=mixture, x=x)),
        "energies.sliced": (energies.sliced, dict(key=key, model=mixture, x=x, probes=2)),
        "energies.denoising": (energies.denoising, dict(key=key, model=mixture, x=x, sigma=0.1)),
        "energies.contrastive": (energies.contrastive, dict(model=mixture, x=x, x_model=x, penalty=0.1)),
        "divergences.kl_by_quadrature": (
            divergences.kl_by_quadrature,
            dict(**pair, bounds=[[-12.0, 12.0]], points=64),
        ),
        "divergences.kl_by_samples": (divergences.kl_by_samples, dict(key=key, **pair, count=16)),
        "divergences.fisher_by_samples": (divergences.fisher_by_samples, dict(key=key, **pair, count=16)),
        "divergences.fit_reverse": (divergences.fit_reverse, dict(p=line, start=wide, points=32, steps=3)),
        "guidance.classifier_free": (
            guidance.classifier_free,
            dict(conditional=linear, unconditional=linear, scale=2.0),
        ),
        "guidance.limited": (
            guidance.limited,
            dict(schedule=vp, guided=linear, otherwise=linear, interval=(0.2, 0.8)),
        ),
        "guidance.static_threshold": (guidance.static_threshold, dict(denoiser=linear, low=-1.0, high=1.0)),
        "guidance.dynamic_threshold": (guidance.dynamic_threshold, dict(denoiser=linear, quantile=0.9, bound=1.0)),
        "guidance.drop_condition": (
            guidance.drop_condition,
            dict(key=key, condition=x, null_condition=np.zeros(2, np.float32), probability=0.1),
        ),
        "inverse.exact_posterior": (
            inverse.exact_posterior,
            dict(target=mixture, operator=operator, y=y, noise_std=0.1),
        ),
        "inverse.dps": (
            inverse.dps,
            dict(schedule=vp, denoiser=linear, operator=operator, y=y, noise_std=0.1, scale=1.0),
        ),
        "inverse.pigdm": (inverse.pigdm, dict(schedule=vp, denoiser=linear, operator=operator, y=y, noise_std=0.1)),
        "inverse.replacement": (inverse.replacement, dict(denoiser=linear, operator=operator, y=y)),
        "inverse.repaint": (inverse.repaint, dict(solver=solvers.ddpm(), jump=1, repeats=2)),
        "inverse.inpainting": (inverse.inpainting, dict(mask=np.array([True, False]))),
        "inverse.colourisation": (inverse.colourisation, dict(shape=(2, 2, 3))),
        "inverse.downsampling": (inverse.downsampling, dict(shape=(4, 4, 1), factor=2)),
        "inverse.matrix": (inverse.matrix, dict(entries=[[1.0, 0.5]])),
        "sampling.sample": (
            dj.sample,
            dict(key=key, denoiser=denoiser, schedule=vp, solver=solvers.euler(), grid=grid, shape=(2,)),
        ),
        "sampling.sample_many": (
            dj.sample_many,
            dict(key=key, count=2, denoiser=linear, schedule=vp, solver=solvers.euler(), grid=grid, shape=(2,), chunk=2),
        ),
        "sampling.encode": (
            dj.encode,
            dict(denoiser=linear, schedule=vp, x=x, solver=solvers.euler(), grid=grid),
        ),
        "likelihood.log_prob": (
            dj.log_prob,
            dict(denoiser=linear, schedule=vp, x=x, divergence="hutchinson", key=key, probes=2, solver=solvers.euler(),
                 grid=grid),
        ),
        "likelihood.lattice_log_prob": (
            dj.likelihood.lattice_log_prob,
            dict(key=key, denoiser=linear, schedule=vp, x=pixels, levels=levels, solver=solvers.euler(), grid=grid),
        ),
        "flows.maf": (flows.maf, dict(key=key, shape=(2,), layers=2, width=4, depth=1)),
        "flows.real_nvp": (flows.real_nvp, dict(key=key, shape=(2,), layers=2, width=4, depth=1, bound=2.0)),
        "flows.spline_coupling": (
            flows.spline_coupling,
            dict(key=key, shape=(2,), layers=2, width=4, depth=1, bins=3, bound=5.0),
        ),
        "flows.glow": (flows.glow, dict(key=key, shape=(4, 4, 1), levels=1, steps=1, width=4)),
        "flows.tarflow": (
            flows.tarflow,
            dict(key=key, shape=(4, 4, 1), patch=2, layers=2, width=4, depth=1, heads=1, bound=2.0),
        ),
        "flows.neural_ode": (flows.neural_ode, dict(key=key, shape=(2,), width=4, depth=1, steps=2)),
        "flows.actnorm": (flows.actnorm, dict(channels=2)),
        "flows.affine": (flows.affine, dict(shift=np.zeros(2), scale=np.ones(2))),
        "flows.logit": (flows.logit, dict(lower=0.0, upper=1.0, margin=0.05)),
        "flows.leaky_relu": (flows.leaky_relu, dict(slope=0.1)),
        "flows.sinh_arcsinh": (flows.sinh_arcsinh, dict(skew=0.0, tail=1.0)),
        "flows.lu_linear": (flows.lu_linear, dict(size=2, floor=1e-3)),
        "flows.permutation": (flows.permutation, dict(order=[1, 0])),
        "flows.reversal": (flows.reversal, dict(size=2)),
        "flows.shuffle": (flows.shuffle, dict(key=key, size=2)),
        "flows.squeeze": (flows.squeeze, dict(factor=2)),
        "flows.reshape": (flows.reshape, dict(source=(4,), target=(2, 2))),
        "flows.standard_normal": (flows.standard_normal, dict(shape=(2,))),
        "flows.log_prob": (flow.log_prob, dict(x=np.zeros(4, np.float32))),
        "flows.sample": (flow.sample, dict(key=key, temperature=0.7)),
        "flows.importance_log_z": (
            flows.importance_log_z,
            dict(key=key, flow=flow, log_density=lambda z: -quadratic(z), count=8),
        ),
        "flows.lattice_log_prob": (
            flows.lattice_log_prob,
            dict(key=key, flow=flow, x=np.zeros(4, np.float32), width=0.5),
        ),
        "flows.sinkhorn_plan": (
            flows.sinkhorn_plan,
            dict(cost=np.eye(4), regularisation=0.5, iterations=4),
        ),
        "flows.transport_cost": (flows.transport_cost, dict(x0=xs, x1=xs)),
        "flows.rational_quadratic": (flows.rational_quadratic, dict(bins=3, bound=5.0, floor=1e-3, ceiling=10.0)),
        "flows.rational_quadratic_spline": (
            flows.rational_quadratic_spline,
            dict(x=0.2, x_knots=knots, y_knots=knots, slopes=np.ones(4)),
        ),
        "flows.matching_loss": (
            flows.matching_loss,
            dict(key=key, velocity=linear, path=path, x0=xs),
        ),
        "vaes.bernoulli": (vaes.decoders.bernoulli, dict(logits=x)),
        "vaes.discretised_logistic": (
            vaes.decoders.discretised_logistic,
            dict(location=x, log_scale=np.zeros(2), levels=levels),
        ),
        "vaes.noise_entropy": (vaes.progressive.noise_entropy, dict(size=2, noise_std=0.5)),
        "vaes.capacity": (vaes.progressive.capacity, dict(size=2, noise_std=0.5)),
        "vaes.fitted_gaussian": (vaes.priors.fitted_gaussian, dict(zs=np.random.default_rng(0).normal(size=(12, 2)))),
        "metrics.frechet_distance": (metrics.frechet_distance, dict(x=xs, y=xs + 1)),
        "metrics.kernel_distance": (
            metrics.kernel_distance,
            dict(x=xs, y=xs + 1, kernel=metrics.gaussian_kernel(1.0)),
        ),
        "metrics.energy_distance": (metrics.energy_distance, dict(x=xs, y=xs + 1)),
        "metrics.sliced_wasserstein": (metrics.sliced_wasserstein, dict(key=key, x=xs, y=xs + 1)),
        "metrics.nearest_neighbours": (metrics.nearest_neighbours, dict(x=xs, reference=xs)),
        "metrics.polynomial_kernel": (metrics.polynomial_kernel, dict(degree=3, offset=1.0)),
        "tuning.optimised_grid": (
            tuning.optimised_grid,
            dict(schedule=vp, denoiser=denoiser, steps=3, key=key, solver=solvers.ddim(), shape=(2,), examples=4,
                 iterations=2),
        ),
        "networks.sinusoidal": (networks.sinusoidal, dict(t=0.3, dim=4)),
        "networks.fourier_inputs": (networks.fourier_inputs, dict(x=x, count=2)),
        "networks.MLP": (_apply(networks.MLP), dict(width=4, depth=1)),
        "networks.DiT": (_apply(networks.DiT, (4, 4, 1)), dict(width=8, depth=1, heads=2, patch=2)),
        "networks.UNet": (
            _apply(networks.UNet, (4, 4, 1)),
            dict(width=4, multipliers=(1,), blocks=1, attention_levels=(), heads=1),
        ),
        "training.Batches": (training.Batches, dict(arrays=tree, batch_size=2, seed=0)),
        "training.split": (training.split, dict(arrays=tree, held_out=1, seed=0)),
        "training.optimiser": (training.optimiser, dict(learning_rate=1e-3, warmup_steps=2, total_steps=9)),
        "training.warmup_cosine": (
            training.warmup_cosine,
            dict(learning_rate=1e-3, warmup_steps=2, total_steps=9),
        ),
        "training.make_step": (
            training.make_step,
            dict(loss_fn=lambda p, k, b: (0.0, {}), optimiser=optax.sgd(0.1), ema_decay=0.9),
        ),
        "training.ema_decay_at": (training.ema_decay_at, dict(step=3, ema_decay=0.9)),
    }  # fmt: skip
    return rows


def _apply(network, shape=(2,)):
    def build(**fields):
        model = network(**fields)
        return model.init(jax.random.key(0), np.zeros(shape, np.float32), 0.5)

    return build


def bad_values():
    """What no argument, or few, may be; some are valid for some."""
    return [
        None, True, 0, -1, 1, 3, 2**31, 2**40, 2**63, -(2**40), 10**30, 0.5, -0.5, 1e-30, 1e30, 1e300, float("nan"),
        float("inf"), -float("inf"), 1 + 2j, "x", "", b"x", [], (), {}, [1, "x"], (2**20, 2**20), (2**40,), (-1,), (0,),
        np.zeros(0), np.zeros((0, 2)), np.zeros((3, 4, 5)), np.full(2, np.nan), np.full(2, np.inf),
        np.full((6, 2), np.nan), np.array(["x", "y"]), np.array([1 + 2j, 0]), np.zeros(2, bool),
        np.array([2**62, -(2**62)]), np.float16(0.3), np.array(0.3), np.zeros(2, object), jax.random.key(1),
        np.array([0, 1], np.uint32), object(), lambda *a, **k: None, lambda *a, **k: np.nan, len, int,
        targets.gaussian([0.0], 1.0), schedules.edm(), solvers.heun,
    ]  # fmt: skip
