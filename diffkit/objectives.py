r"""Objectives: the variational lower bound, and weighted denoising losses.

The negative log likelihood of one example is bounded by three terms (VDM equation 11):

$$-\log p(x) \le
  \underbrace{D_{\mathrm{KL}}(q(z_1 \mid x) \,\Vert\, p(z_1))}_{\text{prior}}
  + \underbrace{\mathbb E\,[-\log p(x \mid z_0)]}_{\text{reconstruction}}
  + \underbrace{L_T(x)}_{\text{diffusion}}.$$

In discrete time with T steps (VDM equation 13, appendix E)
$L_T = \tfrac T2\, \mathbb E\,[\mathrm{expm1}(\lambda_s - \lambda_t)\,
\lVert \epsilon - \hat\epsilon \rVert^2]$ with $t$ uniform on $\{1/T, \dots, 1\}$ and $s = t - 1/T$;
in continuous time (equation 17) $L_\infty = \tfrac12\, \mathbb E\,[-\lambda'(t)\,
\lVert \epsilon - \hat\epsilon \rVert^2]$. Everything here is in float32, whatever the network computes in.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from diffkit.denoiser import AbstractDenoiser, Denoiser, step_divergence, underlying
from diffkit.model import DiffusionModel
from diffkit.parameterizations import AbstractRangeParameterization
from diffkit.processes import rescaled_prior_std
from diffkit.proposals import Proposal, propose
from diffkit.schedules import AbstractSchedule, AbstractVarianceMinimising, minimises_variance
from diffkit.time_samplers import AbstractTimeSampler, LowDiscrepancy
from diffkit.typing import BatchScalar, DataBatch, Example, Index, PRNGKey, Scalar, ScalarLike
from diffkit.weightings import ELBO, AbstractWeighting

ConditionBatch = Float[Array | np.ndarray, "batch condition"]
"""One condition for each example of a batch."""


class VLB(eqx.Module):
    """The negative variational lower bound, in nats per example: smaller is better.

    **Attributes:** `prior`, `reconstruction`, `diffusion`: one number per example; `dimensions`: the
    number of dimensions of an example.
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

    It depends on `logsnr` alone: in the rescaled latent it is the divergence of N(x, rho^2) from
    N(0, 1 + rho^2), whatever the process.
    """
    _, logsnr = model.schedule.endpoints
    signal = jnp.square(x / rescaled_prior_std(logsnr))
    noise_share = jax.nn.sigmoid(-logsnr)
    return 0.5 * jnp.sum(signal + noise_share - 1 - jax.nn.log_sigmoid(-logsnr))


def reconstruction_term(
    model: DiffusionModel, stored: Float[Array, "*shape"] | Array, eps: Example
) -> Scalar:
    """-log p(x | z_0) for one example as stored, with z_0 made from the noise `eps`, in nats."""
    level = model.level(0.0)
    z_0 = model.process.perturb(model.decoder.encode(stored), eps, level)
    return -model.decoder.log_prob(stored, z_0, level)


# The noises of the lattice below are 1 apart and reach to 7 on either side. At VDM's endpoint, where the
# decoder errs once in 370 draws, its standard deviation is 3 % of the mean; that of a single draw is 17
# times the mean.
_LATTICE_REACH = 7


def expected_reconstruction(
    model: DiffusionModel, stored: Float[Array, "*shape"] | Array, shift: Scalar
) -> Scalar:
    r"""E[-log p(x | z_0)] over the noise, for one example as stored, in nats.

    A decoder is independent over dimensions, so that one number can be the noise of all of them: the
    expectation is then an integral over one standard normal variable. It is taken by the lattice rule
    $\sum_j \varphi(j + u)\, f(j + u)$ with a random shift u, which is unbiased. An error of the decoder is
    rare and costs much: a few plain draws of the noise mostly contain none, and understate both the term
    and its standard error. The lattice always has points where the errors are.

    **Arguments:** `model`; `stored`; `shift`: u, uniform in [0, 1).
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


def diffusion_term(
    model: DiffusionModel,
    x: Example,
    t: ScalarLike,
    eps: Example,
    *,
    steps: int | None = None,
    weighting: AbstractWeighting = ELBO(),
    condition: Float[Array, " condition"] | None = None,
    key: PRNGKey | None = None,
    hybrid: bool = False,
) -> Scalar:
    """The integrand of the weighted diffusion loss for one encoded example, in nats.

    **Arguments:**

    - `x`: the encoded example.
    - `t`: the time; with `steps` it is rounded up to the next multiple of 1 / steps above it.
    - `eps`: the noise.
    - `steps`: T for discrete time, `None` for continuous time.
    - `weighting`: w(logsnr). With `steps`, `ELBO` is the bound of the discrete-time model; any other is its
      own continuous-time loss at the T discrete times, so that `simple` stays the plain squared error.
    - `condition`, `key`: handed to the denoiser.
    - `hybrid`: where a model predicts variances, leave them out of the loss and add the bound from which
      they are learnt.
    """
    part = range_parameterization(model) if hybrid else None
    levels = _visit(model.schedule, t, steps, part)
    return _integrand(model.denoiser, x, eps, levels, steps, weighting, condition, key, part)


class _Levels(eqx.Module):
    """All that the loss of one example asks of the schedule.

    **Attributes:** `logsnr` and its derivative `slope` at the time; `before`: the logsnr one step earlier,
    in discrete time; `learnt`: the same for the steps whose variances are learnt.
    """

    logsnr: Scalar
    slope: Scalar
    before: Scalar | None
    learnt: Scalar | None


def _visit(
    schedule: AbstractSchedule,
    t: ScalarLike,
    steps: int | None,
    part: AbstractRangeParameterization | None,
) -> _Levels:
    t, before = jnp.asarray(t), None
    if steps is not None:
        # k / T and (k - 1) / T from whole numbers. A difference of times would lose digits, and each noise
        # level would be another number as the end of a step than as the start of the next.
        k = jnp.floor(t * steps) + 1
        t, before = k / steps, schedule((k - 1) / steps)
    logsnr, slope = jax.jvp(schedule, (t,), (jnp.ones_like(t),))
    learnt = None
    if part is not None:
        # The step of length 1 / T that starts here, cut short at the data end.
        same = steps == part.steps
        learnt = before if same else schedule(jnp.maximum(t - 1 / part.steps, 0.0))
    return _Levels(logsnr, slope, before, learnt)


def _integrand(
    denoiser: AbstractDenoiser,
    x: Example,
    eps: Example,
    levels: _Levels,
    steps: int | None,
    weighting: AbstractWeighting,
    condition: Float[Array, " condition"] | None,
    key: PRNGKey | None,
    part: AbstractRangeParameterization | None,
) -> Scalar:
    logsnr = levels.logsnr
    z = denoiser.process.perturb(x, eps, denoiser.process.at(logsnr))
    prediction = denoiser(z, logsnr, condition, key=key)
    squares = jnp.square(eps - prediction.eps)
    if steps is None or not isinstance(weighting, ELBO):
        loss = -0.5 * weighting(logsnr) * levels.slope * jnp.sum(squares)
    else:
        assert levels.before is not None
        spread = None if part is not None else prediction.spread
        loss = steps * step_divergence(squares, logsnr, levels.before, spread)
    if part is not None:
        assert levels.learnt is not None
        divergence = part.steps * step_divergence(
            jax.lax.stop_gradient(squares), logsnr, levels.learnt, prediction.spread
        )
        loss = loss + part.vlb_weight / math.log(2) * divergence
    return loss


def range_parameterization(model: DiffusionModel) -> AbstractRangeParameterization | None:
    """The parameterization of a model that predicts variances, else `None`."""
    denoiser = underlying(model.denoiser)
    if isinstance(denoiser, Denoiser):
        part = denoiser.parameterization
        return part if isinstance(part, AbstractRangeParameterization) else None
    return None


Share = tuple[Index, int]
"""Part `index` of `of` equal parts of a batch."""


def _rows(draw: Callable[[int], PyTree], batch: int, share: Share | None) -> PyTree:
    """`draw(batch)`, or those rows of a larger batch's draws that are a part's own."""
    if share is None:
        return draw(batch)
    index, of = share
    return jax.tree.map(
        lambda rows: jax.lax.dynamic_slice_in_dim(rows, index * batch, batch), draw(of * batch)
    )


def _check_steps(steps: int | None) -> None:
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, or None for continuous time, got {steps}.")


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
    """The weighted denoising loss of a batch, an unbiased estimate in nats per example.

    With the weighting `ELBO` it is the diffusion term of the VLB. For a model that predicts the
    variances of its reverse steps too (`AbstractRangeParameterization`) the bound from which it learns
    them is added. The interior of a schedule that minimises the variance
    (`diffkit.AbstractVarianceMinimising`) has another gradient than its value: where a mean of the numbers
    returned is differentiated, that of the mean of their squares (VDM appendix I.2), at the cost of no
    further pass through the network. Such a model has derivatives by its parameters alone, in reverse mode.

    **Arguments:**

    - `model`: the model.
    - `x`: a batch of data as stored, (batch, *shape).
    - `key`: from `jax.random.key`; times, noises and dropout are drawn from it.
    - `weighting`: w(logsnr) relative to the VLB.
    - `time_sampler`: how times are drawn; it does not change the expectation.
    - `steps`: T for the discrete-time loss, `None` for continuous time. Weightings other than `ELBO` keep
      their own loss, at the T discrete times.
    - `condition`: one condition per example (`diffkit.data.conditions`), or `None`.
    - `inference`: switches dropout off.

    **Returns:** one number per example, (batch,).

    **Raises:** `ValueError` if the examples' shape is not the model's or `steps` is below 1; a type
    error for data of the wrong dtype.
    """
    return _diffusion(
        model, x, key, weighting, time_sampler, steps, condition, inference, hybrid=True
    )[0]


def diffusion_with_times(
    model: DiffusionModel,
    x: DataBatch,
    key: PRNGKey,
    *,
    weighting: AbstractWeighting,
    time_sampler: AbstractTimeSampler,
    steps: int | None,
    condition: ConditionBatch | None,
    inference: bool = False,
    share: Share | None = None,
) -> tuple[BatchScalar, BatchScalar, BatchScalar]:
    """`denoising_loss`, the times that were drawn and their importances, for a loss that adapts.

    With a `share`, `x` is that part of a larger batch, and draws are the part's among those of the batch.
    """
    return _diffusion(
        model, x, key, weighting, time_sampler, steps, condition, inference, True, share
    )


def _diffusion(
    model: DiffusionModel,
    x: DataBatch,
    key: PRNGKey,
    weighting: AbstractWeighting,
    time_sampler: AbstractTimeSampler,
    steps: int | None,
    condition: ConditionBatch | None,
    inference: bool,
    hybrid: bool,
    share: Share | None = None,
) -> tuple[BatchScalar, BatchScalar, BatchScalar]:
    _check_steps(steps)
    encoded = model.encode(x)
    t_key, eps_key, dropout_key = jax.random.split(key, 3)

    def draw(batch: int) -> PyTree:
        eps = jax.random.normal(eps_key, (batch, *encoded.shape[1:]), encoded.dtype)
        keys = None if inference else jax.random.split(dropout_key, batch)
        return time_sampler(t_key, batch), eps, keys

    (t, importance), eps, keys = _rows(draw, encoded.shape[0], share)
    part = range_parameterization(model) if hybrid else None

    def visit(schedule: AbstractSchedule) -> _Levels:
        return jax.vmap(lambda t: _visit(schedule, t, steps, part))(t)

    losses = _Losses(encoded, eps, condition, keys, importance, weighting, part, steps)
    schedule = model.schedule
    if minimises_variance(schedule):
        outer, inner = (visit(each) for each in _parts(schedule))
        values = _with_second_moment((model.denoiser, outer, inner), losses)
    else:
        values = losses(model.denoiser, visit(schedule))
    return values, t, importance


class _Losses(eqx.Module):
    """The losses of a batch whose times and noises are drawn."""

    x: Float[Array, "batch *shape"]
    eps: Float[Array, "batch *shape"]
    condition: ConditionBatch | None
    keys: Key[Array, " batch"] | None
    importance: BatchScalar
    weighting: AbstractWeighting
    part: AbstractRangeParameterization | None
    steps: int | None = eqx.field(static=True)

    def __call__(self, denoiser: AbstractDenoiser, levels: _Levels) -> BatchScalar:
        def one(x, eps, levels, condition, key):
            return _integrand(
                denoiser, x, eps, levels, self.steps, self.weighting, condition, key, self.part
            )

        return self.importance * jax.vmap(one)(self.x, self.eps, levels, self.condition, self.keys)


def _parts(
    schedule: AbstractVarianceMinimising,
) -> tuple[AbstractVarianceMinimising, AbstractVarianceMinimising]:
    """The schedule with a gradient by all but its interior, and with one by its interior alone."""
    inner, outer = eqx.partition(schedule, schedule.interior_parameters())

    def fixed(tree: AbstractVarianceMinimising) -> AbstractVarianceMinimising:
        return jax.tree.map(lambda v: jax.lax.stop_gradient(v) if eqx.is_array(v) else v, tree)

    return eqx.combine(outer, fixed(inner)), eqx.combine(fixed(outer), inner)


@eqx.filter_custom_vjp
def _with_second_moment(arguments, losses):
    """The losses of a batch: by `outer` with their gradient, by `inner` with that of their squares.

    `outer` and `inner` are one and the same values of the schedule. One pass through the network gives
    both: the square of a loss has 2 loss times its gradient (VDM appendix I.2).
    """
    denoiser, outer, _ = arguments
    return losses(denoiser, outer)


@_with_second_moment.def_fwd
def _forward(perturbed, arguments, losses):
    denoiser, outer, _ = arguments
    moved, fixed = eqx.partition(denoiser, perturbed[0])
    values, pullback = jax.vjp(
        lambda moved, levels: losses(eqx.combine(moved, fixed), levels), moved, outer
    )
    return values, (values, pullback)


@_with_second_moment.def_bwd
def _backward(residuals, grad, perturbed, arguments, losses):
    values, pullback = residuals
    by_denoiser, by_levels = pullback(grad)
    return by_denoiser, by_levels, jax.tree.map(lambda leaf: 2 * values * leaf, by_levels)


def proposed_diffusion(
    model: DiffusionModel,
    x: DataBatch,
    key: PRNGKey,
    proposal: Proposal,
    *,
    steps: int | None,
    condition: ConditionBatch | None,
    inference: bool = True,
) -> tuple[BatchScalar, BatchScalar, BatchScalar, BatchScalar]:
    r"""The diffusion term of the bound of a batch, at noise levels that a proposal draws.

    The draws of a batch cover the proposal evenly, as those of `diffkit.LowDiscrepancy` cover time.

    **Arguments:** `model`, `x`, `key`, `condition`, `inference`: as for `vlb`; `proposal`, made by
    `diffkit.proposals.propose` for these `steps`.

    **Returns:** the term of each example, an unbiased estimate in nats; the `logsnr` it was drawn at; the
    inverse of its density (`Proposal.draw`); and the squared error of eps there. Where variances are
    predicted the last is the error that would cost as much.
    """
    encoded = model.encode(x)
    batch = encoded.shape[0]
    level_key, eps_key, dropout_key = jax.random.split(key, 3)
    logsnr, before, importance = proposal.draw(LowDiscrepancy()(level_key, batch)[0])
    eps = jax.random.normal(eps_key, encoded.shape, encoded.dtype)
    keys = None if inference else jax.random.split(dropout_key, batch)
    # Of the squared error in the term. `_integrand` takes all T steps for the mean of one.
    factor = 0.5 if steps is None else 0.5 * jnp.expm1(before - logsnr)
    scale = importance if steps is None else importance / steps

    def visit(logsnr: Scalar, before: Scalar) -> _Levels:
        # By logsnr itself, that is with a slope of -1.
        return _Levels(logsnr, -jnp.ones_like(logsnr), before, None)

    levels = jax.vmap(visit)(logsnr, before)
    losses = _Losses(encoded, eps, condition, keys, scale, ELBO(), None, steps)
    values = losses(model.denoiser, levels)
    return values, logsnr, importance, values / (importance * factor)


def end_terms(
    model: DiffusionModel, x: DataBatch, *, key: PRNGKey, share: Share | None = None
) -> tuple[BatchScalar, BatchScalar]:
    """Prior and reconstruction term of a batch of data as stored, in nats per example."""
    encoded = model.encode(x)

    def draw(batch: int) -> PyTree:
        return jax.random.normal(key, (batch, *encoded.shape[1:]), encoded.dtype)

    eps = _rows(draw, encoded.shape[0], share)
    prior = jax.vmap(lambda x: prior_term(model, x))(encoded)
    reconstruction = jax.vmap(lambda x, eps: reconstruction_term(model, x, eps))(
        jnp.asarray(x), eps
    )
    return prior, reconstruction


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

    By default noise levels are drawn as the bound asks (`diffkit.proposals`). In continuous time they are
    uniform in `logsnr`, so that schedules with the same endpoints have the same estimates; only a schedule
    that minimises the variance is followed. Times that are uniform in t leave most reports too good under
    schedules that hardly visit the ends of their range.

    **Arguments:**

    - `model`: the model.
    - `x`: a batch of data as stored, (batch, *shape).
    - `key`: from `jax.random.key`.
    - `steps`: the number T of steps of the discrete-time model; `None` is continuous time.
    - `time_sampler`: draws times in place of the default; it does not change the expectation. By default
      the interior of a schedule has no gradient in continuous time, and never that of the variance: give a
      time sampler to train it.
    - `condition`: one condition per example (`diffkit.data.conditions`), or `None`.
    - `inference`: `False` keeps dropout on, for training.

    **Returns:** a `VLB`: prior, reconstruction and diffusion term in nats per example; `.total`;
    `.bits_per_dim`.

    **Raises:** `ValueError` if the examples' shape is not the model's or `steps` is below 1; a type
    error for data of the wrong dtype.

    Jit-compile the function that calls it (`eqx.filter_jit`) when it is called more than once.
    """
    _check_steps(steps)
    end_key, diffusion_key = jax.random.split(key)
    prior, reconstruction = end_terms(model, x, key=end_key)
    if time_sampler is None:
        diffusion, *_ = proposed_diffusion(
            model,
            x,
            diffusion_key,
            propose(model.schedule, steps),
            steps=steps,
            condition=condition,
            inference=inference,
        )
    else:
        diffusion, _, _ = _diffusion(
            model, x, diffusion_key, ELBO(), time_sampler, steps, condition, inference, hybrid=False
        )
    return VLB(prior, reconstruction, diffusion, math.prod(model.shape))
