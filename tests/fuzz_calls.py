"""Valid calls of the public functions, and the bad values that a fuzz puts in
place of each of their arguments.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffjax as dj
from diffjax import (
    ddpm,
    distributions,
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
)


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
    mixture = targets.gaussian_mixture(
        [0.4, 0.6], [[1.0, 0.0], [-1.0, 0.5]], [0.4, 0.7]
    )
    line = targets.gaussian_mixture([0.4, 0.6], [[1.0], [-1.0]], [0.4, 0.7])
    wide = targets.gaussian([0.0], 1.5)
    denoiser = targets.denoiser(mixture, vp)
    x, xs = (
        np.array([0.3, -0.2], np.float32),
        np.linspace(-1, 1, 12, dtype=np.float32).reshape(6, 2),
    )
    grid = np.linspace(1.0, 1e-2, 5)
    operator = inverse.matrix([[1.0, 0.5]])
    kernel = langevin.mala(mixture, 0.1)
    normal = distributions.standard_normal((4,))
    flow = flows.flow(normal, flows.affine(np.zeros(4), np.ones(4)))
    straight = flows.interpolant(schedules.rectified_flow())
    levels = np.linspace(-1, 1, 4)
    pixels = levels[[0, 1, 3]]
    pixel_denoiser = lambda x, t: 0.5 * x
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
        "schedules.learned": (
            schedules.learned,
            dict(key=key, hidden=4, log_snr_max=13.0, log_snr_min=-5.0),
        ),
        "schedules.from_betas": (
            schedules.from_betas,
            dict(betas=np.linspace(1e-3, 0.2, 20)),
        ),
        "schedules.from_sigmas": (
            schedules.from_sigmas,
            dict(sigmas=np.geomspace(0.1, 5.0, 6)),
        ),
        "schedules.log_snr": (schedules.log_snr, dict(schedule=vp, t=0.5)),
        "schedules.time_of_log_snr": (
            schedules.time_of_log_snr,
            dict(schedule=vp, log_snr=0.5),
        ),
        "schedules.drift_coefficient": (
            schedules.drift_coefficient,
            dict(schedule=vp, t=0.5),
        ),
        "schedules.perturb": (
            schedules.perturb,
            dict(schedule=vp, x0=x, t=0.5, noise=x),
        ),
        "schedules.prior_std": (schedules.prior_std, dict(schedule=vp)),
        "numerics.phi": (numerics.phi, dict(order=2, z=0.3)),
        "distributions.dequantise": (
            distributions.dequantise,
            dict(key=key, x=x, width=0.1),
        ),
        "distributions.bits_per_dim": (
            distributions.bits_per_dim,
            dict(log_prob=-3.0, x_shape=(2,), bins=8, width=0.1),
        ),
        "noise.normal": (noise.normal, dict(key=key, counter=0, shape=(2,))),
        "noise.brownian": (
            noise.brownian,
            dict(key=key, start=0.0, end=1.0, shape=(2,)),
        ),
        "targets.gaussian": (targets.gaussian, dict(mean=[0.0, 1.0], scale=0.5)),
        "targets.gaussian_mixture": (
            targets.gaussian_mixture,
            dict(
                weights=[0.4, 0.6], means=[[1.0, 0.0], [-1.0, 0.5]], scales=[0.4, 0.7]
            ),
        ),
        "targets.empirical": (targets.empirical, dict(data=xs)),
        "targets.uniform_boxes": (
            targets.uniform_boxes,
            dict(weights=[1.0], lower=[[0.0, 0.0]], upper=[[1.0, 2.0]]),
        ),
        "targets.circles": (targets.circles, dict(std=0.24, nodes=16)),
        "targets.moons": (targets.moons, dict(std=0.2, nodes=16)),
        "targets.energy": (
            targets.energy,
            dict(function=quadratic, log_normaliser=0.0),
        ),
        "targets.denoiser": (targets.denoiser, dict(target=mixture, schedule=vp)),
        "targets.log_prob": (mixture.log_prob, dict(x=x)),
        "targets.sample": (mixture.sample, dict(key=key)),
        "targets.noised": (mixture.noised, dict(schedule=vp, t=0.5)),
        "quadrature.rule": (quadrature.rule, dict(bounds=[[-1.0, 1.0]], points=8)),
        "quadrature.integrate": (
            quadrature.integrate,
            dict(function=quadratic, bounds=[[-1.0, 1.0]], points=8),
        ),
        "quadrature.log_integral": (
            quadrature.log_integral,
            dict(log_density=wide.log_prob, bounds=[[-9.0, 9.0]], points=64),
        ),
        "grids.uniform": (grids.uniform, dict(schedule=vp, steps=4)),
        "grids.quadratic": (grids.quadratic, dict(schedule=vp, steps=4)),
        "grids.log_snr": (grids.log_snr, dict(schedule=vp, steps=4)),
        "grids.polyexponential": (
            grids.polyexponential,
            dict(schedule=vp, steps=4, rho=1.5),
        ),
        "grids.karras": (grids.karras, dict(schedule=vp, steps=4, rho=7.0)),
        "grids.align_your_steps": (
            grids.align_your_steps,
            dict(schedule=schedules.edm(), steps=4, table="sdxl"),
        ),
        "grids.from_noise_ratios": (
            grids.from_noise_ratios,
            dict(schedule=vp, ratios=[5.0, 1.0, 0.1]),
        ),
        "grids.ddpm": (
            grids.ddpm,
            dict(schedule=chain, steps=4, spacing="leading", steps_offset=0),
        ),
        "grids.from_indices": (
            grids.from_indices,
            dict(schedule=chain, indices=[20, 10, 1]),
        ),
        "grids.to_zero": (grids.to_zero, dict(grid=grid)),
        "predictions.denoiser": (
            predictions.denoiser,
            dict(schedule=vp, net=linear, kind="noise", sigma_data=0.5, inputs="raw"),
        ),
        "predictions.categorical": (
            predictions.categorical,
            dict(schedule=vp, net=linear, levels=levels),
        ),
        "predictions.score": (predictions.score, dict(schedule=vp, denoiser=linear)),
        "predictions.variance": (
            predictions.variance,
            dict(schedule=vp, denoiser=denoiser),
        ),
        "sde.forward": (sde.forward, dict(schedule=vp)),
        "sde.reverse": (sde.reverse, dict(schedule=vp, denoiser=linear, noise=1.0)),
        "sde.probability_flow": (
            sde.probability_flow,
            dict(schedule=vp, denoiser=linear),
        ),
        "sde.solve_fokker_planck": (
            sde.solve_fokker_planck,
            dict(
                sde=process,
                p=np.full(8, 1 / 8),
                edges=np.linspace(-2, 2, 9),
                ts=np.linspace(0.1, 0.2, 3),
            ),
        ),
        "solvers.adaptive": (
            solvers.adaptive,
            dict(rtol=1e-3, atol=1e-3, max_steps=64),
        ),
        "solvers.adaptive_sde": (
            solvers.adaptive_sde,
            dict(rtol=1e-2, atol=1e-2, max_steps=64),
        ),
        "solvers.ddim": (solvers.ddim, dict(eta=0.5)),
        "solvers.eta_between": (
            solvers.eta_between,
            dict(low=0.05, high=1.0, eta=0.5),
        ),
        "solvers.eta_er_sde": (solvers.eta_er_sde, dict(power=0.3, offset=10.0)),
        "solvers.er_sde": (solvers.er_sde, dict(order=3, eta=0.5, corrected=True)),
        "solvers.seeds": (solvers.seeds, dict(order=2, eta=0.5)),
        "solvers.ddpm": (solvers.ddpm, dict(variance="posterior")),
        "solvers.edm_stochastic": (
            solvers.edm_stochastic,
            dict(churn=10.0, noise_min=0.05, noise_max=50.0, noise_scale=1.0),
        ),
        "solvers.annealed_langevin": (
            solvers.annealed_langevin,
            dict(corrections=3, step_size=0.2),
        ),
        "solvers.picard": (
            solvers.picard,
            dict(solver=solvers.ddim(), window=4, tolerance=1e-3),
        ),
        "solvers.predictor_corrector": (
            solvers.predictor_corrector,
            dict(
                predictor=solvers.reverse_diffusion(),
                corrections=1,
                snr=0.16,
                norms="expected",
            ),
        ),
        "solvers.restart": (
            solvers.restart,
            dict(solver=solvers.heun(), t_low=0.06, t_high=0.3, repeats=2, steps=4),
        ),
        "solvers.dpm_solver": (solvers.dpm_solver, dict(order=2)),
        "solvers.deis": (solvers.deis, dict(order=3, coordinate="t")),
        "solvers.sa_solver": (
            solvers.sa_solver,
            dict(predictor_order=2, corrector_order=2, eta=1.0),
        ),
        "solvers.unipc": (solvers.unipc, dict(order=2, variant="bh2")),
        "solvers.integrate": (
            solvers.integrate,
            dict(
                key=None,
                solver=solvers.euler(),
                problem=linear,
                x=x,
                ts=grid,
                path=False,
                info=False,
            ),
        ),
        "solvers.steps_within": (
            solvers.steps_within,
            dict(solver=solvers.heun(), evaluations=8, to_zero=False),
        ),
        "losses.sample_times": (
            losses.sample_times,
            dict(key=key, count=4, schedule=vp),
        ),
        "losses.batch_loss": (
            losses.batch_loss,
            dict(
                key=key,
                prediction=predictions.denoiser(vp, linear, "noise"),
                x0=xs,
                weighting="uniform",
            ),
        ),
        "ddpm.linear_betas": (ddpm.linear_betas, dict(steps=20, first=1e-4, last=0.02)),
        "ddpm.cosine_betas": (
            ddpm.cosine_betas,
            dict(steps=20, offset=0.008, clip=0.999),
        ),
        "ddpm.sigmoid_betas": (
            ddpm.sigmoid_betas,
            dict(steps=20, first=1e-4, last=0.02, reach=6.0),
        ),
        "ddpm.betas_of": (ddpm.betas_of, dict(schedule=vp, steps=20)),
        "ddpm.elbo": (
            ddpm.elbo,
            dict(
                key=key, denoiser=pixel_denoiser, chain=chain, x=pixels, levels=levels
            ),
        ),
        "ddpm.continuous_elbo": (
            ddpm.continuous_elbo,
            dict(
                key=key,
                denoiser=pixel_denoiser,
                schedule=vp,
                x=pixels,
                count=4,
                levels=levels,
            ),
        ),
        "ddpm.forward_step": (ddpm.forward_step, dict(chain=chain, x=x, index=3)),
        "ddpm.posterior": (ddpm.posterior, dict(chain=chain, x=x, x0=x, index=3)),
        "ddpm.simple_loss": (
            ddpm.simple_loss,
            dict(key=key, denoiser=linear, chain=chain, x=x, index=3),
        ),
        "ddpm.hybrid_loss": (
            ddpm.hybrid_loss,
            dict(
                key=key,
                denoiser=ddpm.paired(linear, linear),
                chain=chain,
                x=x,
                bound_weight=1e-3,
            ),
        ),
        "ddpm.loss_history": (ddpm.loss_history, dict(steps=20, length=3)),
        "ddpm.interpolate": (
            ddpm.interpolate,
            dict(
                key=key,
                denoiser=linear,
                chain=chain,
                start=x,
                end=x + 1,
                weights=[0.5],
                index=5,
            ),
        ),
        "ncsn.geometric_sigmas": (
            ncsn.geometric_sigmas,
            dict(count=5, sigma_min=0.1, sigma_max=5.0),
        ),
        "ncsn.overlapping_sigmas": (
            ncsn.overlapping_sigmas,
            dict(dimension=8, sigma_min=0.1, sigma_max=5.0, overlap=0.5),
        ),
        "ncsn.score_loss": (
            ncsn.score_loss,
            dict(key=key, denoiser=linear, ladder=ladder, x=x, index=3),
        ),
        "langevin.ula": (langevin.ula, dict(target=mixture, step_size=0.1)),
        "langevin.mala": (langevin.mala, dict(target=mixture, step_size=0.1)),
        "langevin.baoab": (
            langevin.baoab,
            dict(target=mixture, step_size=0.1, friction=1.0),
        ),
        "langevin.run": (
            langevin.run,
            dict(key=key, kernel=kernel, x=x, steps=4, thinning=1, warm_up=1),
        ),
        "langevin.run_many": (
            langevin.run_many,
            dict(key=key, kernel=kernel, xs=xs, steps=4, thinning=1, warm_up=1),
        ),
        "langevin.effective_sample_size": (
            langevin.effective_sample_size,
            dict(samples=np.random.rand(2, 16, 1)),
        ),
        "langevin.r_hat": (
            langevin.r_hat,
            dict(samples=np.random.rand(2, 16, 1), ranks=True),
        ),
        "langevin.standard_error": (
            langevin.standard_error,
            dict(samples=np.random.rand(2, 16, 1)),
        ),
        "energies.exact": (energies.exact, dict(model=mixture, x=x)),
        "energies.sliced": (
            energies.sliced,
            dict(key=key, model=mixture, x=x, probes=2),
        ),
        "energies.denoising": (
            energies.denoising,
            dict(key=key, model=mixture, x=x, sigma=0.1),
        ),
        "energies.contrastive": (
            energies.contrastive,
            dict(model=mixture, x=x, x_model=x, penalty=0.1),
        ),
        "divergences.kl_by_quadrature": (
            divergences.kl_by_quadrature,
            dict(**pair, bounds=[[-12.0, 12.0]], points=64),
        ),
        "divergences.kl_by_samples": (
            divergences.kl_by_samples,
            dict(key=key, **pair, count=16),
        ),
        "divergences.fisher_by_samples": (
            divergences.fisher_by_samples,
            dict(key=key, **pair, count=16),
        ),
        "divergences.fit_reverse": (
            divergences.fit_reverse,
            dict(p=line, start=wide, points=32, steps=3),
        ),
        "guidance.classifier_free": (
            guidance.classifier_free,
            dict(conditional=linear, unconditional=linear, scale=2.0),
        ),
        "guidance.limited": (
            guidance.limited,
            dict(schedule=vp, guided=linear, otherwise=linear, interval=(0.2, 0.8)),
        ),
        "guidance.static_threshold": (
            guidance.static_threshold,
            dict(denoiser=linear, low=-1.0, high=1.0),
        ),
        "guidance.dynamic_threshold": (
            guidance.dynamic_threshold,
            dict(denoiser=linear, quantile=0.9, bound=1.0),
        ),
        "guidance.drop_condition": (
            guidance.drop_condition,
            dict(
                key=key,
                condition=x,
                null_condition=np.zeros(2, np.float32),
                probability=0.1,
            ),
        ),
        "inverse.exact_posterior": (
            inverse.exact_posterior,
            dict(target=mixture, operator=operator, y=y, noise_std=0.1),
        ),
        "inverse.dps": (
            inverse.dps,
            dict(
                schedule=vp,
                denoiser=linear,
                operator=operator,
                y=y,
                noise_std=0.1,
                scale=1.0,
            ),
        ),
        "inverse.pigdm": (
            inverse.pigdm,
            dict(schedule=vp, denoiser=linear, operator=operator, y=y, noise_std=0.1),
        ),
        "inverse.replacement": (
            inverse.replacement,
            dict(denoiser=linear, operator=operator, y=y),
        ),
        "inverse.repaint": (
            inverse.repaint,
            dict(solver=solvers.ddpm(), jump=1, repeats=2),
        ),
        "inverse.inpainting": (inverse.inpainting, dict(mask=np.array([True, False]))),
        "inverse.colourisation": (inverse.colourisation, dict(shape=(2, 2, 3))),
        "inverse.downsampling": (inverse.downsampling, dict(shape=(4, 4, 1), factor=2)),
        "inverse.matrix": (inverse.matrix, dict(entries=[[1.0, 0.5]])),
        "sampling.sample": (
            dj.sample,
            dict(
                key=key,
                denoiser=denoiser,
                schedule=vp,
                solver=solvers.euler(),
                grid=grid,
                shape=(2,),
            ),
        ),
        "sampling.sample_many": (
            dj.sample_many,
            dict(
                key=key,
                count=2,
                denoiser=linear,
                schedule=vp,
                solver=solvers.euler(),
                grid=grid,
                shape=(2,),
                chunk=2,
            ),
        ),
        "sampling.encode": (
            dj.encode,
            dict(denoiser=linear, schedule=vp, x=x, solver=solvers.euler(), grid=grid),
        ),
        "likelihood.log_prob": (
            dj.log_prob,
            dict(
                denoiser=linear,
                schedule=vp,
                x=x,
                divergence="hutchinson",
                key=key,
                probes=2,
                solver=solvers.euler(),
                grid=grid,
            ),
        ),
        "likelihood.lattice_log_prob": (
            dj.likelihood.lattice_log_prob,
            dict(
                key=key,
                denoiser=linear,
                schedule=vp,
                x=pixels,
                levels=levels,
                solver=solvers.euler(),
                grid=grid,
            ),
        ),
        "flows.maf": (flows.maf, dict(key=key, shape=(2,), layers=2, width=4, depth=1)),
        "flows.real_nvp": (
            flows.real_nvp,
            dict(key=key, shape=(2,), layers=2, width=4, depth=1, bound=2.0),
        ),
        "flows.spline_coupling": (
            flows.spline_coupling,
            dict(key=key, shape=(2,), layers=2, width=4, depth=1, bins=3, bound=5.0),
        ),
        "flows.glow": (
            flows.glow,
            dict(key=key, shape=(4, 4, 1), scales=1, steps=1, width=4),
        ),
        "flows.tarflow": (
            flows.tarflow,
            dict(
                key=key,
                shape=(4, 4, 1),
                patch=2,
                layers=2,
                width=4,
                depth=1,
                heads=1,
                bound=2.0,
            ),
        ),
        "flows.neural_ode": (
            flows.neural_ode,
            dict(key=key, shape=(2,), width=4, depth=1, steps=2),
        ),
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
        "distributions.standard_normal": (
            distributions.standard_normal,
            dict(shape=(2,)),
        ),
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
        "flows.rational_quadratic": (
            flows.rational_quadratic,
            dict(bins=3, bound=5.0, floor=1e-3, ceiling=10.0),
        ),
        "flows.rational_quadratic_spline": (
            flows.rational_quadratic_spline,
            dict(x=0.2, x_knots=knots, y_knots=knots, slopes=np.ones(4)),
        ),
        "flows.matching_loss": (
            flows.matching_loss,
            dict(key=key, velocity=linear, interpolant=straight, x0=xs),
        ),
        "distributions.bernoulli": (distributions.bernoulli, dict(logits=x)),
        "distributions.discretised_logistic": (
            distributions.discretised_logistic,
            dict(location=x, log_scale=np.zeros(2), levels=levels),
        ),
        "vaes.noise_entropy": (
            vaes.progressive.noise_entropy,
            dict(size=2, noise_std=0.5),
        ),
        "vaes.capacity": (vaes.progressive.capacity, dict(size=2, noise_std=0.5)),
        "vaes.fitted_gaussian": (
            vaes.priors.fitted_gaussian,
            dict(zs=np.random.default_rng(0).normal(size=(12, 2))),
        ),
        "metrics.frechet_distance": (metrics.frechet_distance, dict(x=xs, y=xs + 1)),
        "metrics.kernel_distance": (
            metrics.kernel_distance,
            dict(x=xs, y=xs + 1, kernel=metrics.gaussian_kernel(1.0)),
        ),
        "metrics.energy_distance": (metrics.energy_distance, dict(x=xs, y=xs + 1)),
        "metrics.sliced_wasserstein": (
            metrics.sliced_wasserstein,
            dict(key=key, x=xs, y=xs + 1),
        ),
        "metrics.nearest_neighbours": (
            metrics.nearest_neighbours,
            dict(x=xs, reference=xs),
        ),
        "metrics.kernel_jackknife": (metrics.kernel_jackknife, dict(x=xs, y=xs + 1)),
        "metrics.moments": (metrics.moments, dict(x=xs)),
        "metrics.stated_moments": (
            metrics.stated_moments,
            dict(mean=np.zeros(2), covariance=np.eye(2)),
        ),
        "metrics.precision_recall": (
            metrics.precision_recall,
            dict(x=xs, y=xs + 1, k=1),
        ),
        "metrics.density_coverage": (
            metrics.density_coverage,
            dict(x=xs, y=xs + 1, k=1),
        ),
        "metrics.nearest_share": (
            metrics.nearest_share,
            dict(x=xs, train=xs, held_out=xs + 1),
        ),
        "metrics.data_copying": (
            metrics.data_copying,
            dict(x=xs, train=xs, held_out=xs + 1),
        ),
        "metrics.polynomial_kernel": (
            metrics.polynomial_kernel,
            dict(degree=3, offset=1.0),
        ),
        "tuning.optimised_grid": (
            tuning.optimised_grid,
            dict(
                schedule=vp,
                denoiser=denoiser,
                steps=3,
                key=key,
                solver=solvers.ddim(),
                shape=(2,),
                examples=4,
                iterations=2,
            ),
        ),
        "tuning.optimised_solver": (
            tuning.optimised_solver,
            dict(
                schedule=vp,
                denoiser=denoiser,
                steps=3,
                key=key,
                solver=solvers.ddim(),
                shape=(2,),
                examples=4,
                iterations=2,
            ),
        ),
        "solvers.output_weights": (
            solvers.output_weights,
            dict(solver=solvers.ddim(), schedule=vp, grid=[0.9, 0.5, 0.1]),
        ),
        "solvers.tabulated": (solvers.tabulated, dict(weights=((0.5,),))),
        "networks.sinusoidal": (networks.sinusoidal, dict(t=0.3, dim=4)),
        "networks.fourier_inputs": (networks.fourier_inputs, dict(x=x, count=2)),
        "networks.attention": (
            networks.attention,
            dict(q=x[None, None], k=x[None, None], v=x[None, None]),
        ),
        "networks.MLP": (_apply(networks.MLP), dict(width=4, depth=1)),
        "networks.DiT": (
            _apply(networks.DiT, (4, 4, 1)),
            dict(width=8, depth=1, heads=2, patch=2),
        ),
        "networks.UNet": (
            _apply(networks.UNet, (4, 4, 1)),
            dict(
                width=4, multipliers=(1,), blocks=1, attention_resolutions=(), heads=1
            ),
        ),
        **{
            f"networks.{network.__name__}": (
                _apply(network, (4, 4, 1)),
                dict(
                    width=4,
                    multipliers=(1,),
                    blocks=1,
                    attention_resolutions=(),
                    head_channels=2,
                ),
            )
            for network in (networks.DDPMpp, networks.ADM, networks.EDM2)
        },
        "training.Batches": (training.Batches, dict(arrays=tree, batch_size=2, seed=0)),
        "training.split": (training.split, dict(arrays=tree, held_out=1, seed=0)),
        "training.optimiser": (
            training.optimiser,
            dict(learning_rate=1e-3, warmup_steps=2, total_steps=9),
        ),
        "training.warmup_cosine": (
            training.warmup_cosine,
            dict(learning_rate=1e-3, warmup_steps=2, total_steps=9),
        ),
        "training.warmup_inverse_sqrt": (
            training.warmup_inverse_sqrt,
            dict(learning_rate=1e-3, warmup_steps=2, decay_after=9),
        ),
        "training.make_step": (
            training.make_step,
            dict(
                loss_fn=lambda p, k, b: (0.0, {}),
                optimiser=optax.sgd(0.1),
                ema_decay=0.9,
            ),
        ),
        "training.ema_decay_at": (training.ema_decay_at, dict(step=3, ema_decay=0.9)),
    }
    return rows | _further_calls()


def _further_calls():
    """Rows of `calls` for the rest of the public functions."""
    key = jax.random.key(0)
    vp, edm = schedules.vp_linear(), schedules.edm()
    chain = schedules.from_betas(np.linspace(1e-3, 0.2, 20))
    x, xs = (
        np.array([0.3, -0.2], np.float32),
        np.linspace(-1, 1, 12, dtype=np.float32).reshape(6, 2),
    )
    grid, levels = np.linspace(1.0, 1e-2, 5), np.linspace(-1, 1, 4)
    pixels = levels[[0, 1, 3]]
    half = lambda x, t: 0.5 * x
    tempered_step = lambda density, beta: langevin.mala(density, 0.1)
    mixture = targets.gaussian_mixture(
        [0.4, 0.6], [[1.0, 0.0], [-1.0, 0.5]], [0.4, 0.7]
    )
    line = targets.gaussian_mixture([0.4, 0.6], [[1.0], [-1.0]], [0.4, 0.7])
    wide = targets.gaussian([0.0], 1.5)
    pair, quadrature_of = (
        {"p": wide, "q": line},
        {"bounds": [[-9.0, 9.0]], "points": 256},
    )
    operator = inverse.matrix([[1.0, 0.5]])
    process, flat = sde.forward(vp), lambda x, t: -quadratic(x)
    problem = solvers.diffusion(vp, linear)
    progress = solvers.start(solvers.heun(), problem, x=x, ts=grid)
    history = ddpm.loss_history(20, 3)
    perceptron = flows.perceptron(key, 2, (2, 2), width=4, depth=1)
    affine_map = flows.bounded_affine()
    normal = distributions.standard_normal((4,))
    flow = flows.flow(normal, flows.affine(np.zeros(4), np.ones(4)))
    ode = flows.flow(normal, flows.continuous(linear, steps=2))
    straight, bridge = flows.interpolant(schedules.rectified_flow()), flows.bridge(1.0)
    gaussian = ddpm.forward_marginal(chain, x, 3)
    rule = optax.sgd(0.1)
    state = training.init(key, {"w": np.ones(2, np.float32)}, rule)
    step = training.make_step(lambda p, k, b: (jnp.sum(p["w"] ** 2), {}), rule)
    batches = training.Batches(np.ones((4, 2), np.float32), 2)
    encoder = lambda x: (x, np.zeros(2, np.float32))
    decoder = lambda z: distributions.gaussian(z, np.zeros((), np.float32))
    discrete = dict(key=key, denoiser=half, chain=chain, x=pixels)
    net_v = predictions.denoiser(vp, linear, "v")
    return {
        "ddpm.constant_betas": (ddpm.constant_betas, dict(steps=20, beta=0.01)),
        "ddpm.rate_distortion": (
            ddpm.rate_distortion,
            discrete | dict(variance="posterior"),
        ),
        "ddpm.two_variable_elbo": (
            ddpm.two_variable_elbo,
            discrete | dict(levels=levels),
        ),
        "ddpm.continuous_loss": (
            ddpm.continuous_loss,
            dict(key=key, denoiser=half, schedule=vp, x=x, t=0.5),
        ),
        "ddpm.schedule_variance_loss": (
            ddpm.schedule_variance_loss,
            dict(key=key, denoiser=half, schedule=vp, x=x, t=0.5),
        ),
        "distributions.discretised_log_prob": (
            distributions.discretised_log_prob,
            dict(
                gaussian=ddpm.forward_marginal(chain, pixels, 3),
                x=pixels,
                levels=levels,
            ),
        ),
        "distributions.gaussian_kl": (
            distributions.gaussian_kl,
            dict(p=gaussian, q=gaussian),
        ),
        "ddpm.forward_marginal": (
            ddpm.forward_marginal,
            dict(chain=chain, x0=x, index=3),
        ),
        "ddpm.paired": (ddpm.paired, dict(denoiser=linear, second=linear)),
        "ddpm.reverse_step": (
            ddpm.reverse_step,
            dict(denoiser=half, chain=chain, x=x, index=3, variance="posterior"),
        ),
        "ddpm.bound_loss": (
            ddpm.bound_loss,
            discrete | dict(index=3, variance="posterior"),
        ),
        "ddpm.index_probabilities": (
            ddpm.index_probabilities,
            dict(history=history, floor=1e-3),
        ),
        "ddpm.record": (
            ddpm.record,
            dict(history=history, indices=[1, 2], losses=[0.1, 0.2]),
        ),
        "ddpm.sample_indices": (
            ddpm.sample_indices,
            dict(key=key, count=4, history=history, floor=1e-3),
        ),
        "divergences.fit_forward": (
            divergences.fit_forward,
            dict(p=line, start=wide, steps=3) | quadrature_of,
        ),
        "divergences.fit_forward_by_samples": (
            divergences.fit_forward_by_samples,
            dict(key=key, p=line, start=wide, count=32, steps=3, gradient_norm=1e-5),
        ),
        "divergences.fit_reverse_by_samples": (
            divergences.fit_reverse_by_samples,
            dict(key=key, p=line, start=wide, count=32, steps=3, gradient_norm=1e-5),
        ),
        "divergences.moment_matched": (
            divergences.moment_matched,
            dict(p=line) | quadrature_of,
        ),
        "divergences.fisher_by_quadrature": (
            divergences.fisher_by_quadrature,
            pair | quadrature_of,
        ),
        "divergences.jensen_shannon_by_quadrature": (
            divergences.jensen_shannon_by_quadrature,
            pair | quadrature_of | dict(tolerance=1e-4),
        ),
        "divergences.jensen_shannon_by_samples": (
            divergences.jensen_shannon_by_samples,
            dict(key=key, count=16) | pair,
        ),
        "energies.reconstruction": (
            energies.reconstruction,
            dict(function=np.tanh, scale=1.0),
        ),
        "energies.persistent_chains": (energies.persistent_chains, dict(xs=xs)),
        "energies.advance": (
            energies.advance,
            dict(
                key=key,
                chains=energies.persistent_chains(xs),
                kernel=langevin.ula(mixture, 0.1),
                steps=2,
                restarts=mixture,
                share=0.1,
            ),
        ),
        "flows.coupling": (
            flows.coupling,
            dict(
                conditioner=perceptron, scalar_map=affine_map, mask=flows.half_mask(4)
            ),
        ),
        "flows.autoregressive": (
            flows.autoregressive,
            dict(conditioner=perceptron, scalar_map=affine_map),
        ),
        "flows.causal_transformer": (
            flows.causal_transformer,
            dict(
                key=key,
                rows=3,
                features=2,
                count=2,
                width=4,
                depth=1,
                heads=1,
                condition_size=0,
            ),
        ),
        "flows.iaf": (flows.iaf, dict(key=key, shape=(2,), layers=2, width=4, depth=1)),
        "flows.masked_perceptron": (
            flows.masked_perceptron,
            dict(key=key, size=3, count=2, width=4, depth=1, condition_size=0),
        ),
        "flows.elementwise": (
            flows.elementwise,
            dict(
                function=jnp.sinh,
                inverse_function=jnp.arcsinh,
                log_slope=lambda x: jnp.log(jnp.cosh(x)),
            ),
        ),
        "flows.chain": (
            lambda a, b: flows.chain(a, b),
            dict(a=flows.exponential(), b=flows.actnorm(2)),
        ),
        "flows.initialise": (
            flows.initialise,
            dict(bijector=flows.actnorm(2), batch=xs),
        ),
        "flows.inverse": (flows.inverse, dict(bijector=flows.tanh())),
        "flows.stack": (
            flows.stack,
            dict(bijectors=[flows.actnorm(2), flows.actnorm(2)], checkpoint=False),
        ),
        "flows.continuous": (
            flows.continuous,
            dict(velocity=linear, steps=4, solver=solvers.rk4()),
        ),
        "flows.neural_velocity": (
            flows.neural_velocity,
            dict(key=key, shape=(2,), width=4, depth=1, condition_dim=None),
        ),
        "flows.transport": (
            flows.transport,
            dict(
                bijector=flows.continuous(linear, steps=2),
                x=x,
                key=key,
                probes=1,
                upwards=True,
            ),
        ),
        "flows.transport_loss": (
            flows.transport_loss,
            dict(
                key=key,
                flow=ode,
                xs=np.zeros((2, 4), np.float32),
                kinetic=0.1,
                jacobian=0.1,
                probes=1,
            ),
        ),
        "flows.alternate_mask": (flows.alternate_mask, dict(size=4, swap=False)),
        "flows.checkerboard_mask": (flows.checkerboard_mask, dict(swap=False)),
        "flows.half_mask": (flows.half_mask, dict(size=4, swap=False)),
        "flows.coupling_flow": (
            flows.coupling_flow,
            dict(
                key=key,
                shape=(2,),
                scalar_map=affine_map,
                layers=2,
                width=4,
                depth=1,
                condition_size=0,
                mix=True,
            ),
        ),
        "flows.nice": (
            flows.nice,
            dict(key=key, shape=(2,), layers=4, width=4, depth=1),
        ),
        "flows.perceptron": (
            flows.perceptron,
            dict(key=key, inputs=2, outputs=(2, 2), width=4, depth=1, condition_size=0),
        ),
        "flows.sinkhorn": (
            flows.sinkhorn,
            dict(regularisation=0.5, iterations=4, tolerance=1e-3),
        ),
        "flows.flow": (flows.flow, dict(base=normal, bijector=flows.tanh())),
        "flows.negative_log_likelihood": (
            flows.negative_log_likelihood,
            dict(flow=flow, xs=np.zeros((2, 4), np.float32)),
        ),
        "flows.reverse_kl": (
            flows.reverse_kl,
            dict(
                key=key,
                flow=flow,
                log_density=lambda z: -quadratic(z),
                count=4,
                path_gradient=True,
            ),
        ),
        "flows.entropic_covariance": (
            flows.entropic_covariance,
            dict(std=[0.5, 1.0], regularisation=0.5),
        ),
        "flows.gaussian_interpolant": (
            flows.gaussian_interpolant,
            dict(
                interpolant=straight,
                mean=[0.5, 1.0],
                std=[0.5, 1.0],
                pairing="independent",
            ),
        ),
        "flows.convolutional": (
            flows.convolutional,
            dict(key=key, kept=(4, 4, 1), outputs=(4, 4, 2), width=4, condition_size=0),
        ),
        "flows.dense": (
            flows.dense,
            dict(key=key, kept=(4, 4, 1), outputs=(4, 4, 2), width=4, condition_size=0),
        ),
        "flows.dequantiser": (
            flows.dequantiser,
            dict(key=key, shape=(3,), layers=2, width=4),
        ),
        "flows.invertible_convolution": (
            flows.invertible_convolution,
            dict(key=key, channels=2),
        ),
        "flows.triangular": (flows.triangular, dict(size=2, floor=1e-3)),
        "flows.bridge": (flows.bridge, dict(std=1.0, t_min=1e-3)),
        "flows.bridge_loss": (
            flows.bridge_loss,
            dict(
                key=key, velocity=linear, noise=linear, interpolant=bridge, x0=xs, x1=xs
            ),
        ),
        "flows.bridge_sde": (
            flows.bridge_sde,
            dict(interpolant=bridge, velocity=linear, noise=linear, diffusion=1.0),
        ),
        "flows.curvature": (
            flows.curvature,
            dict(bijector=flows.continuous(linear, steps=4), x=x),
        ),
        "flows.examples": (
            flows.examples,
            dict(
                key=key,
                interpolant=straight,
                x0=xs,
                x1=xs,
                pairing=flows.fixed_pairs(),
                times="uniform",
            ),
        ),
        "flows.interpolant": (
            flows.interpolant,
            dict(schedule=schedules.rectified_flow(), variance=lambda t: t * (1 - t)),
        ),
        "flows.reflow_pairs": (flows.reflow_pairs, dict(key=key, flow=flow, count=3)),
        "flows.velocity_denoiser": (
            flows.velocity_denoiser,
            dict(interpolant=straight, velocity=linear, pairing=flows.independent()),
        ),
        "flows.bounded_affine": (flows.bounded_affine, dict(bound=2.0)),
        "flows.conditional": (
            flows.conditional,
            dict(conditioner=perceptron, scalar_map=affine_map),
        ),
        "flows.pointwise": (flows.pointwise, dict(shape=(3,), scalar_map=affine_map)),
        "flows.multiscale": (
            lambda shape, level: flows.multiscale(shape, level),
            dict(shape=(4, 4, 1), level=flows.exponential()),
        ),
        "flows.inverse_rational_quadratic_spline": (
            flows.inverse_rational_quadratic_spline,
            dict(y=0.2, x_knots=levels, y_knots=levels, slopes=np.ones(4)),
        ),
        "grids.beta": (grids.beta, dict(schedule=vp, steps=4, a=0.6, b=0.6)),
        "grids.shifted": (grids.shifted, dict(schedule=vp, steps=4, shift=3.0)),
        "grids.exponential": (grids.exponential, dict(schedule=vp, steps=4)),
        "grids.karras_between": (
            grids.karras_between,
            dict(schedule=vp, steps=4, start=0.9, end=0.5, rho=7.0),
        ),
        "grids.angular": (grids.angular, dict(schedule=vp, steps=4, share=0.5)),
        "grids.recommended": (
            grids.recommended,
            dict(schedule=vp, solver=solvers.heun(), evaluations=16),
        ),
        "grids.cost_of_step": (grids.cost_of_step, dict(solver=solvers.heun())),
        "grids.transport": (
            grids.transport,
            dict(schedule=vp, reference=edm, ts=[1.0, 0.5, 0.1]),
        ),
        "grids.strength": (grids.strength, dict(grid=grid, strength=0.5)),
        "guidance.classifier": (
            guidance.classifier,
            dict(schedule=vp, denoiser=linear, log_prob_y=flat, scale=1.0),
        ),
        "guidance.classifier_free_batched": (
            guidance.classifier_free_batched,
            dict(
                denoiser=linear, condition=x, null_condition=x, scale=2.0, rescale=0.5
            ),
        ),
        "guidance.autoguidance": (
            guidance.autoguidance,
            dict(denoiser=linear, worse=linear, scale=2.0, rescale=0.5),
        ),
        "guidance.cfg_plus_plus_scale": (
            guidance.cfg_plus_plus_scale,
            dict(schedule=vp, grid=grid, scale=0.6),
        ),
        "guidance.ratio_of_steps": (
            guidance.ratio_of_steps,
            dict(schedule=vp, grid=grid),
        ),
        "inverse.dps_steps": (
            inverse.dps_steps,
            dict(
                schedule=vp,
                denoiser=linear,
                operator=operator,
                y=[0.4],
                grid=grid,
                step_size=1.0,
            ),
        ),
        "inverse.gaussian_variance": (
            inverse.gaussian_variance,
            dict(schedule=vp, std=1.0),
        ),
        "inverse.linear_operator": (
            inverse.linear_operator,
            dict(function=lambda x: jnp.ravel(x)[:1], shape=(2,)),
        ),
        "inverse.release_mask": (
            inverse.release_mask,
            dict(schedule=vp, mask=[0.1, 1.0]),
        ),
        "inverse.soft_inpainting": (
            inverse.soft_inpainting,
            dict(denoiser=linear, y=x, mask=[0.5, 1.0]),
        ),
        "inverse.trust_mask": (
            inverse.trust_mask,
            dict(schedule=vp, noise_std=[0.1, 1.0], std=1.0),
        ),
        "langevin.adapt_step_size": (
            langevin.adapt_step_size,
            dict(
                key=key,
                make_kernel=lambda size: langevin.mala(mixture, size),
                x=x,
                steps=4,
                initial=1.0,
            ),
        ),
        "langevin.score_only": (langevin.score_only, dict(score=np.negative)),
        "langevin.tempered": (langevin.tempered, dict(start=wide, end=line, beta=0.5)),
        "langevin.annealed": (
            langevin.annealed,
            dict(ladder=[wide, wide], step_sizes=[0.1, 0.2], steps=2),
        ),
        "langevin.sgld": (
            langevin.sgld,
            dict(gradient=lambda key, x: -x, step_size=0.1),
        ),
        "langevin.underdamped": (
            langevin.underdamped,
            dict(target=mixture, step_size=0.1, friction=1.0),
        ),
        "langevin.annealed_importance_sampling": (
            langevin.annealed_importance_sampling,
            dict(
                key=key,
                base=wide,
                target=line,
                betas=[0.0, 1.0],
                make_kernel=tempered_step,
                count=4,
                steps=1,
            ),
        ),
        "langevin.thermodynamic_integration": (
            langevin.thermodynamic_integration,
            dict(
                key=key,
                base=wide,
                target=line,
                betas=[0.0, 1.0],
                make_kernel=tempered_step,
                count=4,
                steps=4,
                warm_up=2,
            ),
        ),
        "losses.denoising_loss": (
            losses.denoising_loss,
            dict(prediction=net_v, x0=x, noise=x, t=0.5, weighting="uniform"),
        ),
        "losses.time_density": (
            losses.time_density,
            dict(schedule=vp, t=0.5, distribution="uniform"),
        ),
        "metrics.gaussian_kernel": (metrics.gaussian_kernel, dict(bandwidth=1.0)),
        "ncsn.rescaled": (ncsn.rescaled, dict(chain=chain)),
        "ncsn.bound_weights": (ncsn.bound_weights, dict(chain=chain)),
        "numerics.log_expm1": (numerics.log_expm1, dict(x=0.5)),
        "distributions.log_normal_interval": (
            distributions.log_normal_interval,
            dict(lower=0.0, upper=1.0),
        ),
        "predictions.scalings": (predictions.scalings, dict(sigma=1.0, sigma_data=0.5)),
        "predictions.noise_input": (predictions.noise_input, dict(schedule=vp, t=0.5)),
        "predictions.input_scalings": (
            predictions.input_scalings,
            dict(schedule=vp, t=0.5, sigma_data=0.5),
        ),
        "predictions.level_evidence": (
            predictions.level_evidence,
            dict(schedule=vp, x=x, t=0.5, levels=levels),
        ),
        "predictions.moments": (
            predictions.moments,
            dict(denoiser=predictions.categorical(vp, linear, levels)),
        ),
        "predictions.noise": (predictions.noise, dict(schedule=vp, denoiser=linear)),
        "predictions.v": (predictions.v, dict(schedule=vp, denoiser=linear)),
        "predictions.velocity": (
            predictions.velocity,
            dict(schedule=vp, denoiser=linear),
        ),
        "quadrature.evaluate": (
            quadrature.evaluate,
            dict(function=quadratic, nodes=np.zeros((4, 1), np.float32)),
        ),
        "sampling.initial": (
            dj.sampling.initial,
            dict(key=key, schedule=vp, grid=grid, shape=(2,)),
        ),
        "sampling.spherical": (
            dj.sampling.spherical,
            dict(start=x, end=x + 1, weight=0.5),
        ),
        "sampling.interpolate": (
            dj.interpolate,
            dict(
                denoiser=linear,
                schedule=vp,
                start=x,
                end=x + 1,
                weights=[0.5],
                solver=solvers.euler(),
                grid=grid,
            ),
        ),
        "schedules.index_of_time": (
            schedules.index_of_time,
            dict(schedule=chain, t=0.5),
        ),
        "schedules.rescale_zero_terminal_snr": (
            schedules.rescale_zero_terminal_snr,
            dict(betas=np.linspace(1e-3, 0.2, 20)),
        ),
        **{
            f"schedules.{name}": (getattr(schedules, name), dict(schedule=vp, t=0.5))
            for name in (
                "diffusion_coefficient",
                "log_snr_rate",
                "rates",
                "without_signal",
            )
        },
        **{
            f"schedules.{name}": (getattr(schedules, name), dict(schedule=vp))
            for name in ("is_finite", "log_snr_range", "noisiest_time")
        },
        "sde.current_velocity": (
            sde.current_velocity,
            dict(sde=process, log_prob=flat, downwards=False),
        ),
        "sde.fokker_planck": (
            sde.fokker_planck,
            dict(sde=process, log_prob=flat, downwards=False),
        ),
        "sde.fokker_planck_residual": (
            sde.fokker_planck_residual,
            dict(sde=process, log_prob=flat, dx=0.1, dt=0.1),
        ),
        "sde.rate_along_flow": (sde.rate_along_flow, dict(velocity=linear)),
        "sde.langevin": (sde.langevin, dict(log_prob=lambda x: -quadratic(x))),
        **{
            f"solvers.{name}": (getattr(solvers, name), dict(eta=0.5))
            for name in (
                "euler_ancestral",
                "dpm_2_ancestral",
                "dpmpp_2s",
                "dpmpp_sde",
                "dpmpp_2m_sde",
                "dpmpp_3m_sde",
            )
        },
        **{
            f"solvers.{name}": (getattr(solvers, name), dict(order=3))
            for name in ("exponential_runge_kutta", "adams_bashforth", "ipndm")
        },
        "solvers.diffusion": (solvers.diffusion, dict(schedule=vp, denoiser=linear)),
        "solvers.start": (
            solvers.start,
            dict(solver=solvers.heun(), problem=problem, x=x, ts=grid),
        ),
        "solvers.advance": (
            solvers.advance,
            dict(
                key=None,
                solver=solvers.heun(),
                progress=progress,
                problem=problem,
                ts=grid,
                steps=2,
            ),
        ),
        "solvers.integrate with noise": (
            solvers.integrate,
            dict(
                key=None,
                solver=solvers.ddim(1.0),
                problem=problem,
                x=x,
                ts=grid,
                noise=np.ones((4, 1, 2), np.float32),
            ),
        ),
        "training.init": (
            training.init,
            dict(key=key, params=state.params, optimiser=rule),
        ),
        "training.make_steps": (training.make_steps, dict(step=step)),
        "training.fit": (
            lambda **settings: training.fit(
                **settings, total_steps=2
            ),  # of which as many as one likes are valid
            dict(
                state=state,
                steps_fn=training.make_steps(step),
                batches=batches,
                block=1,
                save_every=1,
            ),
        ),
        "training.data_mesh": (training.data_mesh, dict(devices=jax.devices()[:1])),
        "training.replicate": (
            training.replicate,
            dict(tree=xs, mesh=training.data_mesh()),
        ),
        "training.shard_batch": (
            training.shard_batch,
            dict(batch=xs, mesh=training.data_mesh(), axis=0),
        ),
        "distributions.gaussian": (
            distributions.gaussian,
            dict(mean=x, log_std=np.zeros(2)),
        ),
        "distributions.discretised_gaussian": (
            distributions.discretised_gaussian,
            dict(mean=x, log_std=np.zeros(2), levels=levels),
        ),
        "vaes.gaussian.elbo": (
            vaes.gaussian.elbo,
            dict(
                key=key,
                encoder=encoder,
                decoder=decoder,
                x=x,
                prior=None,
                beta=1.0,
                free_bits=0.0,
            ),
        ),
        "vaes.gaussian.importance_weighted_bound": (
            vaes.gaussian.importance_weighted_bound,
            dict(key=key, encoder=encoder, decoder=decoder, x=x, samples=2),
        ),
        "vaes.gaussian.encode": (vaes.gaussian.encode, dict(encoder=encoder, x=x)),
        "vaes.gaussian.sample": (
            vaes.gaussian.sample,
            dict(key=key, decoder=decoder, prior=distributions.standard_normal((2,))),
        ),
        "vaes.hierarchical.bottom_up": (
            vaes.hierarchical.bottom_up,
            dict(kernels=[encoder], layers=None),
        ),
        "vaes.hierarchical.top_down": (
            vaes.hierarchical.top_down,
            dict(
                top=encoder,
                posteriors=[lambda x, z: (z, z)],
                marginals=None,
                layers=None,
            ),
        ),
    }


def _apply(network, shape=(2,)):
    def build(**fields):
        model = network(**fields)
        return model.init(jax.random.key(0), np.zeros(shape, np.float32), 0.5)

    return build


def bad_values():
    """Values that are wrong for most arguments."""
    return [
        None, True, 0, -1, 1, 3, 2**31, 2**40, 2**63, -(2**40), 10**30, 10**400,
        [10**30], 0.5, -0.5, 1e-30, 1e30, 1e300, float("nan"), float("inf"),
        -float("inf"), 1 + 2j, "x", "", b"x", [], (), {}, [1, "x"], (2**20, 2**20),
        (2**40,), (-1,), (0,),
        np.zeros(0), np.zeros((0, 2)), np.zeros((3, 4, 5)), np.full(2, np.nan),
        np.full(2, np.inf), np.full((6, 2), np.nan), np.array(["x", "y"]),
        np.array([1 + 2j, 0]), np.zeros(2, bool), np.array([2**62, -(2**62)]),
        np.float16(0.3), np.array(0.3), np.zeros(2, object), jax.random.key(1),
        np.array([0, 1], np.uint32),
        object(), lambda *a, **k: None, lambda *a, **k: np.nan, len, int,
        targets.gaussian([0.0], 1.0), schedules.edm(), solvers.heun,
    ]  # fmt: skip
