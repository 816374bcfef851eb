r"""Guidance: samples that follow their condition more closely than those of the model itself.

Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, equation 6, where the weight is $1 + w$)
replaces the conditional prediction by

$$\hat\epsilon = \hat\epsilon(z) + w\,\big(\hat\epsilon(z, c) - \hat\epsilon(z)\big),$$

the score of $p(z)\,(p(z \mid c) / p(z))^w$: w = 1 is the conditional model, w = 0 the unconditional one,
and w > 1 trades variety for agreement with the condition. The same holds for every other target, since all
are linear in eps at fixed z.

For w other than 1 no model has these scores at all noise levels at once. So there is no likelihood, and the
distribution of samples depends somewhat on the number of steps. Guidance at high noise reduces variety
most; at low noise it costs time and changes little. An interval of `logsnr` restricts it to the middle
(Kynkäänniemi, Aittala, Karras, Laine, Aila and Lehtinen 2024, arXiv 2404.07724).
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp

from diffkit.denoiser import AbstractDenoiser, AbstractDerivedDenoiser, Prediction
from diffkit.model import DiffusionModel
from diffkit.processes import AbstractProcess
from diffkit.typing import Condition, Example, MaybeKey, ScalarLike, as_float


class Guided(AbstractDerivedDenoiser):
    """Classifier-free guidance of a denoiser trained with and without conditions.

    The prediction without the condition plus `scale` times the change by the condition, within an interval
    of noise levels. Choose it for samples of a class or a description, if agreement matters more than
    variety. A predicted variance (`Prediction.spread`) is that of the conditional prediction.

    Call it with a condition like any other denoiser, under every sampler. One batched call of the network
    gives both predictions; outside the interval, and for a scale of 1, only the conditional one is
    computed. (A sampler whose `logsnr` differs within a batch, such as one with adaptive steps, pays for
    both everywhere.)

    **Arguments:** `denoiser`: takes a condition, or zeros for none (`TrainConfig.condition_dropout`);
    `scale`: 1 is exactly the conditional denoiser, 0 the unconditional one; `interval`: (min, max) of the
    `logsnr` at which to guide, inclusive, elsewhere the scale is 1; `None` guides everywhere. Noise levels
    sigma / alpha from a to b are `(-2 * log(b), -2 * log(a))`.

    **Raises:** `ValueError` if `scale` is not finite or the interval is in the wrong order, and when called
    without a condition.
    """

    denoiser: AbstractDenoiser
    scale: float = eqx.field(static=True)
    interval: tuple[float, float] | None = eqx.field(static=True)

    # Written out, since static checkers would put the inherited `process` first.
    def __init__(
        self, denoiser: AbstractDenoiser, scale: float, interval: tuple[float, float] | None = None
    ):
        if not math.isfinite(scale):
            raise ValueError(f"scale must be a finite number, such as 2.0, got {scale}.")
        if interval is not None and not interval[0] < interval[1]:
            raise ValueError(f"interval must be (min, max) of logsnr, got {interval}.")
        self.denoiser, self.scale = denoiser, float(scale)
        self.interval = interval and (float(interval[0]), float(interval[1]))

    @property
    def process(self) -> AbstractProcess:
        """The process of the denoiser."""
        return self.denoiser.process

    def __call__(
        self, z: Example, logsnr: ScalarLike, condition: Condition = None, *, key: MaybeKey = None
    ) -> Prediction:
        if condition is None:
            raise ValueError(
                "guidance needs a condition, got None: pass condition=..., for example "
                "dk.data.one_hot(3, 10), or use the model without guidance."
            )
        logsnr = as_float(logsnr)

        def plain() -> Prediction:
            return self.denoiser(z, logsnr, condition, key=key)

        def guided() -> Prediction:
            pair = jnp.stack([jnp.zeros_like(condition), condition])
            both = jax.vmap(lambda condition: self.denoiser(z, logsnr, condition, key=key))(pair)
            # Both forms: either one, derived from the other, would lose its digits at one end.
            free, given = (jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in (0, 1))
            x = free.x + self.scale * (given.x - free.x)
            eps = free.eps + self.scale * (given.eps - free.eps)
            return Prediction(x, eps, given.level, given.spread)

        if self.scale == 1:
            return plain()
        if self.interval is None:
            return guided()
        low, high = self.interval
        return jax.lax.cond((low <= logsnr) & (logsnr <= high), guided, plain)


def guide(
    model: DiffusionModel, scale: float, interval: tuple[float, float] | None = None
) -> DiffusionModel:
    """The model with a guided denoiser, to sample from with a condition; it shares the model's parameters.

    **Arguments:** `model`: trained with conditions, some of them left out; `scale`, `interval`: as in
    `diffkit.Guided`.

    **Raises:** `ValueError` as `diffkit.Guided`.

    ```python
    vdm = dk.preset("vdm", network="mlp")
    model = vdm.model(shape=(2,), condition_size=10, key=jax.random.key(0))
    stronger = dk.guide(model, 2.0, interval=(-3.0, 5.0))
    condition = dk.data.one_hot(3, 10)
    x = dk.sample(stronger, dk.samplers.DDIM(), 4, key=jax.random.key(1), steps=5, condition=condition)
    ```
    """
    return eqx.tree_at(lambda m: m.denoiser, model, Guided(model.denoiser, scale, interval))
