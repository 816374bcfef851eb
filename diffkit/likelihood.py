r"""The likelihood of data by the probability-flow ODE.

The ODE of a denoiser carries the density of the prior to a density of the data; along an ODE a density
changes by a divergence (Chen, Rubanova, Bettencourt and Duvenaud 2018, arXiv 1806.07366, theorem 1;
for diffusion models Song et al. 2021, arXiv 2011.13456, section 4.3 and appendix D.2). In the rescaled
latent the ODE is the same for every process, $dy / d\rho = \hat\epsilon(y, \rho)$, so

$$\log p(y_0) = \log \mathcal N\big(y_1;\, 0, (1 + \rho_1^2) I\big)
  + \int_{\rho_0}^{\rho_1} \operatorname{tr} \frac{\partial \hat\epsilon}{\partial y}\, d\rho .$$

The solver works on $e = (y - y_0) / \rho$, the movement of the latent in units of the noise, over
$\lambda$: with $\rho = e^{-\lambda / 2}$,

$$\frac{de}{d\lambda} = \tfrac12 \big(e - \hat\epsilon(y_0 + \rho\, e, \lambda)\big), \qquad e = 0
  \text{ at } y_0 .$$

Both e and its slope are of order one at all noise levels. In y, an error that is small compared to the data
is large compared to the noise at the data end, where the density of discrete data has peaks that narrow.
"""

import math
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from diffkit.lazy import needed
from diffkit.model import DiffusionModel
from diffkit.objectives import ConditionBatch, reconstruction_term
from diffkit.processes import rescaled_prior_std
from diffkit.samplers.forms import FORMS
from diffkit.samplers.loop import rescaled
from diffkit.typing import BatchScalar, DataBatch, Example, PRNGKey, Scalar, check_positive


def log_likelihood(
    model: DiffusionModel,
    x: DataBatch,
    *,
    key: PRNGKey,
    condition: ConditionBatch | None = None,
    divergence: Literal["auto", "exact", "hutchinson"] = "auto",
    probes: int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
) -> BatchScalar:
    r"""log p(x) of the probability-flow ODE, in nats per example: larger is better.

    **Continuous data** (a decoder without levels): the log density of the ODE's samples at x, in the data's
    own units. Samples end at the schedule's `logsnr_max`, so for a good model it is the density of the data
    with added Gaussian noise of standard deviation $\rho_0 = e^{-\lambda_{\max} / 2}$, as encoded.

    **Discrete data**: the model draws $z_0$ by the ODE and then x from its decoder. The result is one draw
    of

    $$\log P(x) \ge \mathbb E_{q(z_0 \mid x)}\big[\log p(x \mid z_0) + \log p(z_0) - \log q(z_0 \mid x)
      \big], \qquad q(z_0 \mid x) = \mathcal N(\alpha_0 x, \sigma_0^2 I),$$

    The mean over keys is the lower bound, and (with the exact divergence) the mean of its exponential is
    P(x). Its ends are those of `vlb`. For an exact denoiser its mean over the data equals that of -`vlb` in
    continuous time; for a trained one either may be greater, since ODE and SDE are then different models.
    Uniform noise over the cell of each level would not work: at `logsnr_max` the density has peaks of
    standard deviation $\rho_0$, by default a sixth of the distance of two levels, and most draws would fall
    between them.

    Each example is solved separately; in a batch all wait for the slowest. The function is differentiable,
    compiles on the first call with given shapes and options, and computes in float64 if JAX enables it.

    **Arguments:**

    - `model`: with any denoiser and process; `x`: a batch of data as stored, (batch, *shape).
    - `key`: from `jax.random.key`; draws $z_0$ of discrete data, and the probes, for example i the same in
      every batch. Continuous data with the exact divergence do not use it.
    - `condition`: one condition per example (`diffkit.data.conditions`), or `None`.
    - `divergence`: `exact`, at the cost of one derivative of the denoiser per dimension; `hutchinson`, an
      unbiased estimate from `probes` derivatives (Grathwohl et al. 2019, FFJORD, arXiv 1810.01367) along
      Rademacher vectors fixed along the trajectory; `auto`, exact up to 64 dimensions.
    - `rtol`, `atol`: the relative and absolute tolerance of each step of the solver (Tsitouras' method of
      order 5), in units of the noise and in nats per dimension. In float32 about 1e-6 is the limit.
    - `max_steps`: the maximum number of solver steps for one example.

    **Returns:** one number per example, (batch,).

    **Raises:** `ValueError` if the shape of the examples is not the model's, a tolerance is not positive,
    or `probes` or `max_steps` is below 1; a type error for data of the wrong dtype; `ImportError` without
    diffrax; `RuntimeError` (from Equinox, at run time) if the solver does not reach the noise end in
    `max_steps` steps.
    """
    check_positive("rtol", rtol)
    check_positive("atol", atol)
    for name, count in (("probes", probes), ("max_steps", max_steps)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}.")
    exact = divergence == "exact" or (divergence == "auto" and math.prod(model.shape) <= 64)
    return _compiled(
        model, jnp.asarray(x), key, condition, None if exact else probes, rtol, atol, max_steps
    )


@eqx.filter_jit
def _compiled(model, x, key, condition, probes, rtol, atol, max_steps):
    encoded = model.encode(x).astype(float)
    dimensions = math.prod(model.shape)
    logsnr_max, _ = model.schedule.endpoints

    def one(x, encoded, condition, index):
        # fold_in, not split: the key of example i is then the same in every batch.
        noise_key, probe_key = jax.random.split(jax.random.fold_in(key, index))
        if probes is None:
            directions = jnp.eye(dimensions, dtype=encoded.dtype)
        else:
            directions = jax.random.rademacher(probe_key, (probes, dimensions), encoded.dtype)
            directions = directions / math.sqrt(probes)
        directions = directions.reshape(-1, *encoded.shape)

        def density(y: Example) -> tuple[Scalar, Any]:
            return _log_density(model, y, condition, directions, rtol, atol, max_steps)

        if model.decoder.levels is None:
            log_p, failed = density(encoded)
            # From e to y, which is rho_0 times as wide; and from y, of the encoded data, to x.
            slope = jax.jvp(model.decoder.encode, (x,), (jnp.ones_like(x),))[1]
            return log_p + 0.5 * dimensions * logsnr_max + jnp.sum(jnp.log(slope)), failed
        eps = jax.random.normal(noise_key, encoded.shape, encoded.dtype)
        log_p, failed = density(encoded + jnp.exp(-logsnr_max / 2) * eps)
        # In units of the noise: both densities of y would be larger by dimensions * logsnr_max / 2, which
        # costs digits.
        return log_p - _log_normal(eps) - reconstruction_term(model, x, encoded, eps), failed

    log_p, failed = jax.vmap(one)(x, encoded, condition, jnp.arange(x.shape[0]))
    return eqx.error_if(
        log_p,
        jnp.any(failed),
        f"log_likelihood: the solver did not reach the noise end in max_steps={max_steps} steps. Raise "
        "max_steps or the tolerances, and make sure that data and model are finite.",
    )


def _log_density(model, y_0, condition, directions, rtol, atol, max_steps) -> tuple[Scalar, Any]:
    """The log density at y_0, in units of the noise, and whether the solver failed.

    The trace of a matrix A is computed as the sum of d^T A d over `directions`.
    """
    # Not imported above: it takes a second, and nothing else needs it.
    diffrax = needed("diffrax", "log_likelihood needs diffrax")

    start, end = (value.astype(y_0.dtype) for value in model.schedule.endpoints)
    denoise = rescaled(model.denoiser, condition)

    def derivative(logsnr: Any, state: tuple[Example, Scalar], _) -> tuple[Example, Scalar]:
        def slope(e: Example) -> Example:
            prediction = denoise(y_0 + jnp.exp(-logsnr / 2) * e, logsnr)
            return (0.5 * (e - FORMS["eps"].quantity(prediction))).astype(y_0.dtype)

        value, along = jax.linearize(slope, state[0])
        return value, jnp.sum(directions * jax.vmap(along)(directions)) / y_0.size

    def norm(error: tuple[Example, Scalar]) -> Scalar:
        # The larger of the two: in a joint mean a single number would be lost beside an image.
        return jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(error[0]))), jnp.abs(error[1]))

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(derivative),
        diffrax.Tsit5(),
        t0=start,
        t1=end,
        dt0=None,
        y0=(jnp.zeros_like(y_0), jnp.zeros((), y_0.dtype)),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, norm=norm),
        max_steps=max_steps,
        throw=False,
    )
    e_1, per_dimension = (leaf[0] for leaf in solution.ys)
    # At the noise end y_1 has the prior's standard deviation and is rho_1 times wider than e_1.
    std = rescaled_prior_std(end)
    prior = _log_normal((y_0 + jnp.exp(-end / 2) * e_1) / std)
    log_p = prior + y_0.size * (per_dimension - (jnp.log(std) + end / 2))
    return log_p, solution.result != diffrax.RESULTS.successful


def _log_normal(value: Example) -> Scalar:
    """The log density of the standard normal."""
    return -0.5 * (jnp.sum(jnp.square(value)) + value.size * math.log(2 * math.pi))
