r"""The multistep machine: one method that includes the published multistep samplers.

**The step.** In a form of the probability-flow ODE, $u = s(\lambda)\, y$ with
$du / d\kappa(\lambda) = q$ (`diffkit.samplers.FORMS`), the step from $t$ to $s$ replaces q by the
polynomial in a variable $\tau(\lambda)$ through its last values, $q_0$ (at $t$), $q_1, q_2, \dots$ In
Newton's form each point adds one term to that polynomial:

$$s_s\, y_s = s_t\, y_t + \sum_{k=0}^{p-1} I_k\, [\tau_0, \dots, \tau_k]\, q, \qquad
  I_k = \int_{\kappa_t}^{\kappa_s} \prod_{i<k} (\tau - \tau_i) \, d\kappa,$$

with the divided differences $[\tau_0, \dots, \tau_k]\, q$.

**The corrector.** Once q is known at the end of a step, the step can be redone with that point in the
polynomial, from the same start and with the same earlier points (the idea of UniC: Zhao, Bai, Rao,
Zhou and Lu 2023, arXiv 2302.04867, section 3). In Newton's form this adds one more term,
$I_p\, [\tau_0, \dots, \tau_{p-1}, \tau_{new}]\, q$: no call of the network, and nothing to redo.

**The numbers.** Gauss-Legendre quadrature in $\lambda$ computes the integrals, on scalars. The papers'
closed forms are differences of nearly equal numbers in short steps: at some hundred steps they have no
digits left in float32. Each $\tau - \tau_i$ is computed as an offset from the start of the step, by
`expm1`. The step is an increment of y, written in differences of q, so it integrates a constant q exactly.
"""

import itertools
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

import diffkit as dk
from diffkit.samplers import FORMS, LONGEST, Denoise, Form, is_long
from diffkit.typing import Example, Index, PRNGKey, Scalar

_VARIABLES = ("logsnr", "rho", "kappa")

# On [0, 1]. The integrands are exponentials of up to a few times the length of the step in logsnr.
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(10)
_NODES, _NODE_WEIGHTS = (1 + _NODES) / 2, _NODE_WEIGHTS / 2

# Orders 2, 3 and 4 are used where the weights have sum |w_j| <= limit |sum w_j|. For equal steps in
# kappa that ratio is 2, 3.67 and 6.67; for equal steps in logsnr it is below 3, 7 and 15. The limits were
# chosen by experiment: nine Gaussians and mixtures on eight grids.
_LIMITS = (3.0, 7.0, 10.0)

# The bound on the factor by which a correction may multiply an error of y at the new point. Without one,
# steps of 4 and more in logsnr diverge in the forms eps and v.
_CONTRACTION = 1.0

# Once three earlier values are known, steps up to this length in logsnr gain from them: of five on EDM's
# grid the last two are 4.9 and 7.5 long.
_KNOWN, _LONGEST_KNOWN = 3, 8.0


class History(eqx.Module):
    """What `Multistep` carries from step to step, for one example.

    **Attributes:** `quantities`: the last values of the form's quantity, the latest first; `logsnr`: where
    they are; `count`: how many there have been since the start or the last long step; `pending`: entry k is
    the integral of the corrector's term for the last step if that step had k + 1 points, else 0 (all are 0
    if it is not to be corrected).
    """

    quantities: tuple[Example, ...]
    logsnr: Float[Array, " points"]
    count: Index
    pending: Float[Array, " points"]


@dk.register("sampler", "multistep")
class Multistep(dk.AbstractSampler):
    r"""The linear multistep method with every choice open; one call of the network per step.

    Choose it with its defaults, the velocity of the straight path with a corrector, from twenty calls on,
    on grids even in logsnr or in a power of rho (`uniform_logsnr`, `rho`): there it is the most accurate on
    average over the problems of `benchmarks/samplers.py`. Below twenty choose `deis`. On grids uniform in
    time (`uniform_t`) choose `ab_v`. The published samplers are other choices (`diffkit_solvers.named`).

    **Order.** p points give order p, and p + 1 with the corrector. The method starts with one point and
    gains one with each step; with three points or more the first steps are always corrected, so an order
    above 3 is 3 in a method that starts in the middle, not in noise. After a much shorter step the order
    falls to the highest whose weights have $\sum_j |w_j|$ at most 3, 7 or 10 times $|\sum_j w_j|$ (for 2,
    3, 4 points), since extrapolation magnifies errors.

    **Long steps.** In a step of more than 4.25 in logsnr (8 once three earlier values are known) a
    polynomial in logsnr has one point. If `diffkit.samplers.is_long` too, a polynomial in any variable has
    one, the step is not corrected, and the history is dropped. Without noise it is a step of DDIM, so the
    error of one to four steps is at most twice that of DDIM.

    **Noise.** With `eta` above 0 it is the multistep method for the reverse SDE: form `x` with
    $u = y / \rho^{1 + \eta^2}$ and $\kappa = \rho^{-(1 + \eta^2)}$, and noise of variance
    $\rho_s^2 \left(1 - (\rho_s / \rho_t)^{2 \eta^2}\right)$ added to $y_s$. For $\eta = 1$ that is the SDE
    of ancestral sampling (Lu et al. 2022, arXiv 2211.01095, appendix on SDE-DPM-Solver++; Gonzalez et
    al. 2023, arXiv 2305.14267, and Xue et al. 2023, arXiv 2309.05019, for other strengths of noise). The
    weak order is at most 2.

    **Arguments:** `form`: the quantity to extrapolate and its scaling, a name in `diffkit.samplers.FORMS`;
    `variable`: of the polynomial, `logsnr`, `rho`, or `kappa`, the form's own variable; `points`: how many
    values the polynomial goes through, 1 to 4; `corrector`: correct each step once its end is known, unless
    this could magnify errors; `midpoint`: use the value in the middle of the step (in logsnr) for the whole
    step, which is of order 2, and milder in long steps; `eta`: the strength of the noise, 0 for the
    probability-flow ODE.

    **Raises:** `ValueError` for an unknown form or variable, a number out of range, `midpoint` with more
    than 2 points or a corrector, and noise in a form other than `x`.
    """

    calls: ClassVar[int] = 1
    form: str = eqx.field(default="velocity", static=True)
    variable: str = eqx.field(default="logsnr", static=True)
    points: int = eqx.field(default=3, static=True)
    corrector: bool = eqx.field(default=True, static=True)
    midpoint: bool = eqx.field(default=False, static=True)
    eta: float = eqx.field(default=0.0, static=True)

    def __check_init__(self):
        for name, known in (("form", FORMS), ("variable", _VARIABLES)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
        if not 1 <= self.points <= len(_LIMITS) + 1:
            raise ValueError(f"points must be from 1 to {len(_LIMITS) + 1}, got {self.points}.")
        if self.midpoint and (self.points > 2 or self.corrector):
            got = f"points={self.points} and corrector={self.corrector}"
            raise ValueError(f"midpoint=True needs points <= 2 and corrector=False, got {got}.")
        if not (math.isfinite(self.eta) and self.eta >= 0):
            raise ValueError(f"eta must be finite and at least 0, got {self.eta}.")
        if self.eta > 0 and self.form != "x":
            raise ValueError(f"eta above 0 needs form='x' (the reverse SDE), got {self.form!r}.")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    @property
    def order(self) -> int:
        order = self.points + int(self.corrector)
        return min(order, 2) if self.stochastic else order

    def init(self, y: Example) -> History:
        # With a corrector the new value stands beside all those of the last step.
        size = self.points if self.corrector else self.points - 1
        nothing = jnp.zeros(size, y.dtype)
        return History((jnp.zeros_like(y),) * size, nothing, jnp.zeros((), int), nothing)

    def step(
        self,
        denoise: Denoise,
        y: Example,
        logsnr_t: Scalar,
        logsnr_s: Scalar,
        state: History,
        key: PRNGKey | None,
    ) -> tuple[Example, History]:
        form = _noisy(self.eta) if self.stochastic else FORMS[self.form]
        prediction = denoise(y, logsnr_t)
        newest = form.quantity(prediction)
        size = len(state.quantities)
        longest = jnp.where(state.count < _KNOWN, LONGEST, _LONGEST_KNOWN)
        long = is_long(logsnr_t, logsnr_s, longest)
        alone = logsnr_s - logsnr_t > longest if self.variable == "logsnr" else long

        # The variable, relative to the start of the step. Values that are not there yet are given places
        # that no other has, beyond the end, and no weight.
        end = self._offsets(form, logsnr_s[None], logsnr_t)
        back = jnp.arange(1, size + 1)
        there = back <= state.count
        tau = jnp.where(there, self._offsets(form, state.logsnr, logsnr_t), (1 + back) * end)
        tau = jnp.append(jnp.zeros(1, y.dtype), tau)
        differences = _divided_differences(tau)
        integrals, growth = self._integrals(form, tau, logsnr_t, logsnr_s)

        # As many points as there are, and as the limit on the weights allows.
        used, weights = [jnp.ones((), bool)], integrals[0] * differences[0]
        for k in range(1, self.points):
            weights = weights + integrals[k] * differences[k]
            limit = _LIMITS[k - 1] * jnp.abs(integrals[0])
            more = used[-1] & (k <= state.count) & (jnp.sum(jnp.abs(weights)) <= limit)
            used.append(more & ~alone)

        # In differences from the newest value: first the correction of the last step, then this step.
        weights = (1 + growth) * (state.pending @ differences[1:])
        for k in range(1, self.points):
            weights = weights + jnp.where(used[k], integrals[k], 0) * differences[k]
        step = growth * y + integrals[0] * newest
        if not self.stochastic:
            rho_t, rho_s = jnp.exp(-logsnr_t / 2), jnp.exp(-logsnr_s / 2)
            step = jnp.where(long, (rho_s - rho_t) * prediction.eps, step)
        for weight, earlier in zip(weights[1:], state.quantities, strict=True):
            step = step + weight * (earlier - newest)
        y = y + step

        if key is not None:
            variance = -jnp.expm1(self.eta**2 * (logsnr_t - logsnr_s))
            noise = jax.random.normal(key, y.shape, y.dtype)
            y = y + jnp.exp(-logsnr_s / 2) * jnp.sqrt(variance) * noise

        # The corrector's term of this step: that of one point more than it used.
        exactly = [one & ~more for one, more in itertools.pairwise([*used, jnp.zeros((), bool)])]
        correct = _contracts(form, end - tau[:-1], integrals[1:], logsnr_s) & ~long
        if not self.corrector:
            correct = correct & (state.count + 1 <= self.points - 2)
        pending = jnp.where(jnp.stack(exactly)[:size] & correct, integrals[1:], 0)

        places = jnp.append(logsnr_t.astype(y.dtype), state.logsnr)[:size]
        count = jnp.where(long, 1, state.count + 1)
        return y, History((newest, *state.quantities)[:size], places, count, pending)

    def _offsets(self, form: Form, logsnr: Float[Array, " n"], origin: Scalar) -> Float[Array, " n"]:
        """The variable's values, relative to that at the origin."""
        if self.variable == "logsnr":
            return logsnr - origin
        offset = (form if self.variable == "kappa" else FORMS["eps"]).offset
        return jax.vmap(lambda value: offset(value, origin))(logsnr)

    def _integrals(
        self, form: Form, tau: Float[Array, " points"], logsnr_t: Scalar, logsnr_s: Scalar
    ) -> tuple[Float[Array, " points"], Scalar]:
        """By the scale at the end: the integrals of Newton's basis, and the change of y at constant u."""
        length, scale = logsnr_s - logsnr_t, form.scale(logsnr_s)
        whole = form.offset(logsnr_s, logsnr_t) / scale
        nodes = logsnr_t + length * jnp.asarray(_NODES, tau.dtype)
        measure = jnp.asarray(_NODE_WEIGHTS, tau.dtype) * jax.vmap(form.slope)(nodes)
        measure = measure * length / scale

        # y = x is a fixed point without noise. So this is the integral of the quantity of data alone,
        # and not a difference of nearly equal scales.
        start, data = form.coefficients(logsnr_t)[0], jax.vmap(form.coefficients)(nodes)[0]
        growth = -(start * whole + measure @ (data - start))

        if self.midpoint:
            nodes, measure = (logsnr_t + 0.5 * length)[None], whole[None]
        factors = self._offsets(form, nodes, logsnr_t)[:, None] - tau[:-1]
        return jnp.append(whole, measure @ jnp.cumprod(factors, axis=1)), growth


def _divided_differences(tau: Float[Array, " points"]) -> Float[Array, "points points"]:
    """Row k: the factors of the values in the divided difference of the first k + 1 of them."""
    gaps = tau[:, None] - tau[None, :] + jnp.eye(len(tau), dtype=tau.dtype)
    return jnp.tril((1 / jnp.cumprod(gaps, axis=1)).T)


def _noisy(eta: float) -> Form:
    """The form `x` of the reverse SDE: with the power 1 + eta^2 of rho instead of the first."""
    power = 1 + eta**2

    def kappa(logsnr: Scalar) -> Scalar:
        return jnp.exp(0.5 * power * logsnr)

    return Form(
        scale=kappa,
        kappa=kappa,
        logsnr=lambda kappa: 2 / power * jnp.log(kappa),
        slope=lambda logsnr: 0.5 * power * kappa(logsnr),
        offset=lambda logsnr, origin: kappa(origin) * jnp.expm1(0.5 * power * (logsnr - origin)),
        quantity=FORMS["x"].quantity,
    )


def _contracts(
    form: Form, gaps: Float[Array, " points"], integrals: Float[Array, " points"], logsnr_s: Scalar
) -> Bool[Array, " points"]:
    """Whether a correction by the new point, with these gaps from 1, 2, ... others, magnifies no error."""
    # If the data are a single point, an error of y at the new point is one of rho eps. The quantity then
    # errs by its coefficient of eps over rho, and the correction by the new point's weight times that.
    response = jnp.abs(form.coefficients(logsnr_s)[1]) * jnp.exp(logsnr_s / 2)
    return jnp.abs(integrals / jnp.cumprod(gaps)) * response <= _CONTRACTION
