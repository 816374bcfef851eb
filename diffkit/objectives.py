r"""Objectives: the variational lower bound, and weighted denoising losses.

The negative log likelihood of one example is bounded by three terms (VDM equation 11):

$$-\log p(x) \le
  \underbrace{D_{\mathrm{KL}}(q(z_1 \mid x) \,\Vert\, p(z_1))}_{\text{prior}}
  + \underbrace{\mathbb E\,[-\log p(x \mid z_0)]}_{\text{reconstruction}}
  + \underbrace{L_T(x)}_{\text{diffusion}}.$$

In discrete time with T steps (VDM equation 13, appendix E) $L_T = \tfrac T2\, \mathbb
E\,[\mathrm{expm1}(\lambda_s - \lambda_t)\, \lVert \epsilon - \hat\epsilon \rVert^2]$ with $t$ uniform on
$\{1/T, \dots, 1\}$ and $s = t - 1/T$; in continuous time (equation 17) $L_\infty = \tfrac12\, \mathbb
E\,[-\lambda'(t)\, \lVert \epsilon - \hat\epsilon \rVert^2]$. Everything here is in float32, whatever the
network computes in.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from diffkit.denoiser import AbstractDenoiser, Denoiser, step_divergence, underlying
from diffkit.model import DiffusionModel
from diffkit.parameterizations import AbstractParameterization
from diffkit.processes import rescaled_prior_std
from diffkit.proposals import Proposal, propose
from diffkit.schedules import AbstractSchedule, minimises_variance
from diffkit.second_moment import with_second_moment
from diffkit.time_samplers import AbstractTimeSampler, LowDiscrepancy
from diffkit.typing import BatchScalar, DataBatch, Example, FloatBatch, Index, PRNGKey, Scalar
from diffkit.weightings import ELBO, AbstractWeighting

ConditionBatch = Float[Array | np.ndarray, "batch condition"]
"""One condition for each example of a batch."""


class VLB(eqx.Module):
    """The negative variational lower bound, in nats per example: smaller is better.

    **Attributes:** `prior`, `reconstruction`, `diffusion`: one number per example; `dimensions`: those of
    an example.
    """

    prior: BatchScalar
    reconstruction: BatchScalar
    diffusion: BatchScalar
    dimensions: int = eqx.field(static=True)

    @property
    def total(self) -> BatchScalar:
        """The bound itself: the sum of the three terms."""
        return self.prior + self.reconstruction + self.diffusion

    @property
    def bits_per_dim(self) -> BatchScalar:
        """The bound in bits per dimension."""
        return self.total / (self.dimensions * math.log(2))


def prior_term(model: DiffusionModel, x: Example) -> Scalar:
    """KL(q(z_1 | x) || p(z_1)) for one encoded example, in nats.

    In the rescaled latent it is the divergence of N(x, rho^2) from N(0, 1 + rho^2) under every process.
    """
    _, logsnr = model.schedule.endpoints
    signal = jnp.square(x / rescaled_prior_std(logsnr))
    noise_share = jax.nn.sigmoid(-logsnr)
    return 0.5 * jnp.sum(signal + noise_share - 1 - jax.nn.log_sigmoid(-logsnr))


def reconstruction_term(
    model: DiffusionModel, stored: Float[Array, "*shape"] | Array, x: Example, eps: Example
) -> Scalar:
    """-log p(x | z_0) in nats, for one example as stored and encoded, and the noise `eps` of z_0."""
    level = model.level(0.0)
    return -model.decoder.log_prob(stored, model.process.perturb(x, eps, level), level)


# Noises 1 apart, up to 7 on either side. At VDM's endpoint, where the decoder errs once in 370 draws, the
# standard deviation is 3 % of the mean, against 17 times the mean for a single draw.
_LATTICE_REACH = 7


def expected_reconstruction(
    model: DiffusionModel, stored: Float[Array, "*shape"] | Array, shift: Scalar
) -> Scalar:
    r"""E[-log p(x | z_0)] over the noise, for one example as stored, in nats.

    A decoder is independent over dimensions, so all can share one noise: an integral over one standard
    normal variable. The lattice rule $\sum_j \varphi(j + u)\, f(j + u)$, with `shift` u uniform in [0, 1),
    estimates it without bias. Errors of the decoder are rare and costly: plain draws usually miss them and
    understate the term and its standard error; the lattice always has points there.
    """
    level = model.level(0.0)
    x = model.decoder.encode(stored)

    def add(total: Scalar, noise: Scalar) -> tuple[Scalar, None]:
        z_0 = model.process.perturb(x, jnp.full(x.shape, noise), level)
        density = jnp.exp(-0.5 * jnp.square(noise)) / math.sqrt(2 * math.pi)
        return total - density * model.decoder.log_prob(stored, z_0, level), None

    noises = jnp.arange(-_LATTICE_REACH, _LATTICE_REACH) + shift
    total, _ = jax.lax.scan(add, jnp.zeros(()), noises)
    return total


class _Visit(eqx.Module):
    """The schedule at a time: logsnr, its derivative, and the logsnr one step earlier in discrete time.

    `learnt` is the last for the steps of an extra loss.
    """

    logsnr: Float[Array, "..."]
    slope: Float[Array, "..."]
    before: Float[Array, "..."] | None
    learnt: Float[Array, "..."] | None


class Drawn(eqx.Module):
    """The loss of each example, importance included; its time, and the inverse of the times' density."""

    loss: BatchScalar
    t: BatchScalar
    importance: BatchScalar


Share = tuple[Index, int]
"""Part `index` of `of` equal parts of a batch."""


class DiffusionLoss(eqx.Module):
    """A weighted denoising loss, and how to draw its noise levels.

    With the weighting `ELBO` it is the diffusion term of the bound. Interior parameters of a schedule that
    minimises the variance (`diffkit.AbstractVarianceMinimising`) receive the gradient of the second moment
    instead (VDM appendix I.2), without another pass through the network. The loss of such a model supports
    reverse mode only, with respect to the model's parameters.

    **Arguments:** `weighting`: w(logsnr) relative to the VLB; `time_sampler`: how to draw times, without
    effect on the expectation; `steps`: T for the discrete-time loss, `None` for continuous time (weightings
    other than `ELBO` keep their own loss, at the T discrete times: `simple` stays the plain squared error);
    `extra`: add the loss that trains a parameterization's further outputs (`extra_loss`), and leave those
    out of the rest.

    **Raises:** `ValueError` if `steps` is below 1.

    ```python
    model = dk.preset("vdm", network="mlp").model(shape=(2,), key=jax.random.key(0))
    loss = dk.DiffusionLoss(weighting=dk.Sigmoid(), time_sampler=dk.Uniform())
    nats = loss(model, jnp.array([[0, 255], [3, 4]]), key=jax.random.key(1))
    ```
    """

    weighting: AbstractWeighting = ELBO()
    time_sampler: AbstractTimeSampler = LowDiscrepancy()
    steps: int | None = eqx.field(default=None, static=True)
    extra: bool = eqx.field(default=True, static=True)

    def __check_init__(self):
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, or None (continuous), got {self.steps}.")

    def __call__(
        self,
        model: DiffusionModel,
        x: DataBatch,
        *,
        key: PRNGKey,
        condition: ConditionBatch | None = None,
        inference: bool = False,
    ) -> BatchScalar:
        """An unbiased estimate of the loss of each example, (batch,), in nats.

        **Arguments:** `model`; `x`: a batch of data as stored, (batch, *shape); `key`: from
        `jax.random.key`, for times, noises and dropout; `condition`: one per example
        (`diffkit.data.conditions`), or `None`; `inference`: switches dropout off.

        **Raises:** `ValueError` if the examples' shape is not the model's; a type error for data of the
        wrong dtype.
        """
        x = model.encode(x)
        return self.draw(model, x, key=key, condition=condition, inference=inference).loss

    def draw(
        self,
        model: DiffusionModel,
        x: FloatBatch,
        *,
        key: PRNGKey,
        condition: ConditionBatch | None = None,
        inference: bool = False,
        share: Share | None = None,
    ) -> Drawn:
        """The same for encoded data, together with the times drawn, for a loss that adapts.

        With a `share`, `x` is that part of a larger batch, with the draws of the batch.
        """
        t_key, eps, keys = _noise(x, key, inference, share)
        t, importance = _rows(lambda n: self.time_sampler(t_key, n), x.shape[0], share)
        loss = self.at(model, x, t, eps, importance=importance, condition=condition, keys=keys)
        return Drawn(loss, t, importance)

    def at(
        self,
        model: DiffusionModel,
        x: FloatBatch,
        t: BatchScalar,
        eps: FloatBatch,
        *,
        importance: BatchScalar | None = None,
        condition: ConditionBatch | None = None,
        keys: Key[Array, " batch"] | None = None,
    ) -> BatchScalar:
        """The losses of encoded data at given times and noises, one number per example, in nats.

        **Arguments:** `model`; `x`: (batch, *shape); `t`: (batch,), with `steps` rounded up to the next
        multiple of 1 / steps; `eps`: (batch, *shape); `importance`: a factor for each, by default 1;
        `condition`: one per example, or `None`; `keys`: for dropout, `None` for none.
        """
        part = extra_parameterization(model) if self.extra else None

        def visit(schedule: AbstractSchedule) -> _Visit:
            return jax.vmap(lambda t: self._visit(schedule, t, part))(t)

        losses = eqx.Partial(self._losses, part, x, eps, condition, keys, importance)
        if minimises_variance(model.schedule):
            return with_second_moment(losses, model.denoiser, model.schedule, visit)
        return losses(model.denoiser, visit(model.schedule))

    def _visit(
        self, schedule: AbstractSchedule, t: Scalar, part: AbstractParameterization | None
    ) -> _Visit:
        before = learnt = None
        if self.steps is not None:
            # k / T and (k - 1) / T from whole numbers: a difference of times would lose digits.
            k = jnp.floor(t * self.steps) + 1
            t, before = k / self.steps, schedule((k - 1) / self.steps)
        logsnr, slope = jax.jvp(schedule, (t,), (jnp.ones_like(t),))
        if part is not None and part.extra_steps is not None:
            same = self.steps == part.extra_steps
            learnt = before if same else schedule(jnp.maximum(t - 1 / part.extra_steps, 0.0))
        return _Visit(logsnr, slope, before, learnt)

    def _losses(
        self, part, x, eps, condition, keys, importance, denoiser: AbstractDenoiser, visits: _Visit
    ) -> BatchScalar:
        def one(x, eps, visit, condition, key):
            logsnr = visit.logsnr
            z = denoiser.process.perturb(x, eps, denoiser.process.at(logsnr))
            prediction = denoiser(z, logsnr, condition, key=key)
            squares = jnp.square(eps - prediction.eps)
            if self.steps is None or not isinstance(self.weighting, ELBO):
                loss = -0.5 * self.weighting(logsnr) * visit.slope * jnp.sum(squares)
            else:
                spread = prediction.spread if part is None else None
                loss = self.steps * step_divergence(squares, logsnr, visit.before, spread)
            if part is None:
                return loss
            assert prediction.spread is not None
            squares = jax.lax.stop_gradient(squares)
            return loss + part.extra_loss(squares, prediction.spread, logsnr, visit.learnt)

        losses = jax.vmap(one)(x, eps, visits, condition, keys)
        return losses if importance is None else importance * losses


def _rows(draw: Callable[[int], PyTree], batch: int, share: Share | None) -> PyTree:
    """`draw(batch)`, or the rows of a larger batch's draws that belong to one part."""
    if share is None:
        return draw(batch)
    index, of = share
    return jax.tree.map(
        lambda rows: jax.lax.dynamic_slice_in_dim(rows, index * batch, batch), draw(of * batch)
    )


def _normal(x: FloatBatch, key: PRNGKey, share: Share | None) -> FloatBatch:
    return _rows(lambda n: jax.random.normal(key, (n, *x.shape[1:]), x.dtype), x.shape[0], share)


def _noise(
    x: FloatBatch, key: PRNGKey, inference: bool, share: Share | None = None
) -> tuple[PRNGKey, FloatBatch, Key[Array, " batch"] | None]:
    """A key for the times of a batch, its noises, and keys for dropout."""
    t_key, eps_key, key = jax.random.split(key, 3)
    keys = None if inference else _rows(lambda n: jax.random.split(key, n), x.shape[0], share)
    return t_key, _normal(x, eps_key, share), keys


def extra_parameterization(model: DiffusionModel) -> AbstractParameterization | None:
    """The parameterization of a model if it adds an `extra_loss`, else `None`."""
    denoiser = underlying(model.denoiser)
    part = denoiser.parameterization if isinstance(denoiser, Denoiser) else None
    return None if part is None or part.extra_steps is None else part


def denoising_loss(
    model: DiffusionModel,
    x: DataBatch,
    *,
    key: PRNGKey,
    weighting: AbstractWeighting = ELBO(),
    time_sampler: AbstractTimeSampler = LowDiscrepancy(),
    steps: int | None = None,
    condition: ConditionBatch | None = None,
    inference: bool = False,
) -> BatchScalar:
    """The weighted denoising loss of a batch, (batch,), in nats: `diffkit.DiffusionLoss` in one call.

    **Arguments:** `weighting`, `time_sampler`, `steps`: as for `diffkit.DiffusionLoss`; the rest as for its
    call.

    **Raises:** as `diffkit.DiffusionLoss` and its call.
    """
    loss = DiffusionLoss(weighting, time_sampler, steps)
    return loss(model, x, key=key, condition=condition, inference=inference)


def proposed_diffusion(
    model: DiffusionModel,
    x: FloatBatch,
    key: PRNGKey,
    proposal: Proposal,
    *,
    steps: int | None,
    condition: ConditionBatch | None,
    inference: bool = True,
) -> tuple[BatchScalar, BatchScalar, BatchScalar, BatchScalar]:
    r"""The diffusion term of the bound of a batch, at noise levels drawn by a proposal.

    The draws cover the proposal evenly, as `diffkit.LowDiscrepancy` covers time.

    **Arguments:** `x`: encoded data, (batch, *shape); `proposal`: made by `diffkit.proposals.propose` for
    these `steps`; the rest as for `vlb`.

    **Returns:** the term of each example, an unbiased estimate in nats; its `logsnr`; the inverse of the
    density (`Proposal.draw`); and the squared error of eps, or the error of equal cost for a model that
    predicts variances.
    """
    level_key, eps, keys = _noise(x, key, inference)
    logsnr, before, importance = proposal.draw(LowDiscrepancy()(level_key, x.shape[0])[0])
    # The factor of the squared error in the term. The loss multiplies the mean of one step by T.
    factor = 0.5 if steps is None else 0.5 * jnp.expm1(before - logsnr)
    scale = importance if steps is None else importance / steps
    # With respect to logsnr itself: the slope is -1.
    visits = _Visit(logsnr, -jnp.ones_like(logsnr), before, None)
    loss = DiffusionLoss(steps=steps, extra=False)
    values = loss._losses(None, x, eps, condition, keys, scale, model.denoiser, visits)
    return values, logsnr, importance, values / (importance * factor)


def end_terms(
    model: DiffusionModel,
    stored: DataBatch,
    x: FloatBatch,
    *,
    key: PRNGKey,
    share: Share | None = None,
) -> tuple[BatchScalar, BatchScalar]:
    """Prior and reconstruction term of a batch of data as stored and encoded, in nats per example."""
    eps = _normal(x, key, share)
    prior = jax.vmap(functools.partial(prior_term, model))(x)
    each = jax.vmap(functools.partial(reconstruction_term, model))
    return prior, each(jnp.asarray(stored), x, eps)


def vlb(
    model: DiffusionModel,
    x: DataBatch,
    *,
    key: PRNGKey,
    steps: int | None = None,
    time_sampler: AbstractTimeSampler | None = None,
    condition: ConditionBatch | None = None,
    inference: bool = True,
) -> VLB:
    """The variational lower bound of a batch: an unbiased estimate from one draw per example.

    By default noise levels follow the integrand of the bound (`diffkit.proposals`). In continuous time they
    are uniform in `logsnr`, so schedules with the same endpoints give the same estimates, unless the
    schedule minimises the variance: then they follow it. Times that are uniform in t make most estimates
    too good under schedules that hardly visit the ends of their range.

    **Arguments:** `model`; `x`: a batch of data as stored, (batch, *shape); `key`: from `jax.random.key`;
    `steps`: the number T of steps of the discrete-time model, `None` for continuous time; `time_sampler`:
    draws times instead of the default, without effect on the expectation (by default the interior of a
    schedule receives no gradient in continuous time, and never that of the variance: pass a time sampler to
    train it); `condition`: one condition per example (`diffkit.data.conditions`), or `None`; `inference`:
    `False` keeps dropout on, for training.

    **Returns:** a `VLB`. Compile a function that calls this more than once (`eqx.filter_jit`).

    **Raises:** `ValueError` if the examples' shape is not the model's or `steps` is below 1; a type error
    for data of the wrong dtype.
    """
    loss = DiffusionLoss(time_sampler=time_sampler or LowDiscrepancy(), steps=steps, extra=False)
    end_key, key = jax.random.split(key)
    encoded = model.encode(x)
    prior, reconstruction = end_terms(model, x, encoded, key=end_key)
    given: dict[str, Any] = {"condition": condition, "inference": inference}
    if time_sampler is None:
        proposal = propose(model.schedule, steps)
        diffusion, *_ = proposed_diffusion(model, encoded, key, proposal, steps=steps, **given)
    else:
        diffusion = loss.draw(model, encoded, key=key, **given).loss
    return VLB(prior, reconstruction, diffusion, math.prod(model.shape))
