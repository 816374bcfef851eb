r"""Samplers of the reverse-time SDE (Song et al. 2021, arXiv 2011.13456).

In the rescaled latent $y = z / \alpha$ every SDE is the variance exploding one, $dy = \sqrt{d\rho^2}\, dw$,
with the score $-\hat\epsilon / \rho$: one formula covers each SDE of the paper.
"""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

import diffkit as dk
from diffkit.samplers import AbstractOneStepSampler, Denoise, Step, between, is_long
from diffkit.typing import Example, PRNGKey, Scalar

# The most noise that a step leaves, in units of the level at its end: 16 even steps from rho = 80 to 0.002,
# and all finer ones, have the published noise.
_MOST_NOISE = 2.0


def _reverse(
    y: Example, prediction: dk.Prediction, logsnr: Scalar, noise: Example, most: float | Scalar
) -> Example:
    """The Euler-Maruyama step from the level of a prediction to `logsnr`."""
    rho_t, rho_s = prediction.level.rho, jnp.exp(-logsnr / 2)
    # rho_t^2 - rho_s^2 = c rho_t^2, without the difference of the squares.
    c = -jnp.expm1(prediction.level.logsnr - logsnr)
    return y - rho_t * c * prediction.eps + jnp.minimum(rho_t, most * rho_s) * jnp.sqrt(c) * noise


@dk.register("sampler", "euler_maruyama")
class EulerMaruyama(AbstractOneStepSampler):
    r"""The Euler-Maruyama method for the reverse-time SDE, of weak order 1.

    $$y_s = y_t + (\rho_t^2 - \rho_s^2)\,\nabla \log p(y_t) + \sqrt{\rho_t^2 - \rho_s^2}\;\xi,
      \qquad \nabla \log p(y_t) = -\hat\epsilon / \rho_t,$$

    with $\xi$ standard normal: the predictor of the paper's algorithm 2 ("reverse diffusion",
    appendix E). The mean is that of ancestral sampling; the noise is that of the forward step, larger by
    the factor $\rho_t / \rho_s$, which leaves too much variance with few steps. The paper discretises the
    VP and sub-VP SDE in their own latents and times; the limit and the order are the same.

    If $\rho$ falls to less than half in a step, the noise has the standard deviation
    $2 \rho_s \sqrt{1 - \rho_s^2 / \rho_t^2}$ instead of $\sqrt{\rho_t^2 - \rho_s^2}$. Without this cap a
    single step from $\rho_t = 80$ would leave noise of that size in the sample.

    Choose it, with a thousand steps, to reproduce the paper's VP and sub-VP samples. The noise of the last
    step stays in the sample; the paper omits it (its appendix G, "Denoising").
    """

    stochastic: ClassVar[bool] = True
    order: ClassVar[int] = 1

    def advance(self, denoise: Denoise, y: Example, step: Step) -> Example:
        prediction = denoise(y, step.logsnr_t)
        return _reverse(y, prediction, step.logsnr_s, step.noise(y), _MOST_NOISE)


@dk.register("sampler", "predictor_corrector")
class PredictorCorrector(AbstractOneStepSampler):
    r"""Langevin steps at a noise level, then one Euler-Maruyama step to the next.

    Each corrector step replaces a part of the noise by fresh noise, at the level of t:

    $$y' = y + \rho^2 (1 - a)\,\nabla \log p(y) + \rho \sqrt{1 - a^2}\;\xi
         = \hat x + \rho\,(a\,\hat\epsilon + \sqrt{1 - a^2}\;\xi),
      \qquad a = e^{-c\,(\lambda_s - \lambda_t)},$$

    the exact solution of the Langevin equation for a frozen $\hat x$. Its weak order is 1. It forgets
    errors faster, at the price of more calls: choose it if samples matter more than time.

    **How it differs from the paper** (algorithms 1 and 4). There the step size
    $2 (r \lVert \xi \rVert / \lVert \nabla \log p \rVert)^2$ comes from a ratio of norms, the same for
    every number of steps. On a Gaussian in many dimensions that leaves a variance too large by the factor
    $1 + r^2$, however many steps are taken; and it ties the examples of a batch together. Here the
    corrector vanishes with the step, so the method converges. Where there is only noise, the paper's step
    is $1 - a = 2 r^2$: r = 0.16 at 1000 steps from 50 to 0.01 is c = 3.09. Correctors come before the
    predictor, as in the published code.

    A long step (`diffkit.samplers.is_long`) uses the same network calls for ancestral steps along the way.

    **Arguments:** `corrector`: c, the amount of noise replaced per step, where 1 is as much as the step
    removes, and larger values correct more where the data fill few directions but lose variance where they
    are spread out; `corrector_steps`: corrector steps before each predictor, each one network call.

    **Raises:** `ValueError` if `corrector` is not positive and finite or `corrector_steps` is below 1.
    """

    stochastic: ClassVar[bool] = True
    order: ClassVar[int] = 1
    corrector: float = 1.0
    corrector_steps: int = eqx.field(default=1, static=True)

    def __check_init__(self):
        if not (math.isfinite(self.corrector) and self.corrector > 0):
            raise ValueError(f"corrector must be positive and finite, got {self.corrector}.")
        if self.corrector_steps < 1:
            got = f"{self.corrector_steps}; without correctors it is the sampler euler_maruyama"
            raise ValueError(f"corrector_steps must be at least 1, got {got}.")

    @property
    def calls(self) -> int:
        return 1 + self.corrector_steps

    def advance(self, denoise: Denoise, y: Example, step: Step) -> Example:
        logsnr_t, logsnr_s, key = step
        assert key is not None
        predictor_key, corrector_key = jax.random.split(key)
        time = self.corrector * (logsnr_s - logsnr_t)
        lost, fresh = -jnp.expm1(-time), jnp.sqrt(-jnp.expm1(-2 * time))
        long = is_long(logsnr_t, logsnr_s)
        share = jnp.arange(self.calls) / self.calls
        levels = jnp.where(long, between(logsnr_t, logsnr_s, share), logsnr_t)

        def correct(y: Example, inputs: tuple[Scalar, Scalar, PRNGKey]) -> tuple[Example, None]:
            here, there, key = inputs
            prediction = denoise(y, here)
            noise = jax.random.normal(key, y.shape, y.dtype)
            # An increment, so that small steps keep their digits.
            corrected = y + prediction.level.rho * (fresh * noise - lost * prediction.eps)
            return jnp.where(long, _reverse(y, prediction, there, noise, 1.0), corrected), None

        keys = jax.random.split(corrector_key, self.corrector_steps)
        y, _ = jax.lax.scan(correct, y, (levels[:-1], levels[1:], keys))
        noise = jax.random.normal(predictor_key, y.shape, y.dtype)
        most = jnp.where(long, 1.0, _MOST_NOISE)
        return _reverse(y, denoise(y, levels[-1]), logsnr_s, noise, most)
