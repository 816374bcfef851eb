r"""Samplers: from noise to data.

A sampler works in the rescaled latent $y = z / \alpha = x + \rho\,\epsilon$, $\rho = e^{-\lambda/2}$, and
so under every process. One step goes from $\lambda_t$ to a less noisy $\lambda_s > \lambda_t$.
"""

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from diffkit.denoiser import Prediction
from diffkit.parameterizations import Predicted, as_plain
from diffkit.typing import Example, PRNGKey, Scalar

Denoise = Callable[[Example, Scalar], Prediction]
"""The denoiser in the rescaled latent: `(y, logsnr) -> Prediction`."""


class AbstractSampler(eqx.Module):
    """One step of a sampler, and the state that it carries from step to step.

    **Attributes:** constants of a class (`order: ClassVar[int] = 2`), or fields and properties if they
    depend on its options. `stochastic`: whether `step` uses its key; a deterministic sampler never receives
    one. `order`: of convergence in the number of steps, as the grid is refined: of the error against the
    exact probability-flow ODE for a deterministic sampler, of mean and variance (the weak order) for a
    stochastic one; `None` if each step is exact to the sampler's own tolerance. `calls`: calls of the
    network per step; `None` if that varies.
    """

    if TYPE_CHECKING:  # where abstract ones would be arguments of every constructor
        stochastic: ClassVar[bool]
        order: ClassVar[int | None]
        calls: ClassVar[int | None]
    else:
        stochastic: eqx.AbstractVar[bool]
        order: eqx.AbstractVar[int | None]
        calls: eqx.AbstractVar[int | None]

    @abc.abstractmethod
    def init(self, y: Example) -> Any:
        """What is carried from step to step (a PyTree; `None` for a one-step method)."""

    @abc.abstractmethod
    def step(
        self,
        denoise: Denoise,
        y: Example,
        logsnr_t: Scalar,
        logsnr_s: Scalar,
        state: Any,
        key: PRNGKey | None,
    ) -> tuple[Example, Any]:
        """One step for one example.

        **Arguments:** `denoise`: the denoiser in the rescaled latent; `y`: the rescaled latent at
        `logsnr_t`; `logsnr_t < logsnr_s`: start and end of the step (`diffkit.invert` runs a deterministic
        sampler the other way); `state`: what `init` or the previous step returned; `key`: for this step and
        this example, `None` if the sampler is not `stochastic`.

        **Returns:** the rescaled latent at `logsnr_s`, and the new state.
        """


class Step(NamedTuple):
    """Start and end of a step, and its key."""

    logsnr_t: Scalar
    logsnr_s: Scalar
    key: PRNGKey | None

    @property
    def rho_t(self) -> Scalar:
        """sigma / alpha at the start."""
        return jnp.exp(-self.logsnr_t / 2)

    @property
    def rho_s(self) -> Scalar:
        """sigma / alpha at the end."""
        return jnp.exp(-self.logsnr_s / 2)

    @property
    def removed(self) -> Scalar:
        """The share of the noise variance that the step removes, 1 - rho_s^2 / rho_t^2."""
        return -jnp.expm1(self.logsnr_t - self.logsnr_s)

    def noise(self, y: Example) -> Example:
        """Standard normal noise of the shape of `y`, for stochastic samplers."""
        assert self.key is not None, "a step adds noise only if its sampler says stochastic = True"
        return jax.random.normal(self.key, y.shape, y.dtype)


class AbstractOneStepSampler(AbstractSampler):
    """A sampler that carries nothing from step to step: a formula.

    By default deterministic, with one call of the network per step; `order` is its own to say.
    """

    stochastic: ClassVar[bool] = False
    calls: ClassVar[int] = 1

    @abc.abstractmethod
    def advance(self, denoise: Denoise, y: Example, step: Step) -> Example:
        """The rescaled latent at `step.logsnr_s`, from `y`, that at `step.logsnr_t`."""

    def init(self, y: Example) -> None:
        return None

    def step(
        self,
        denoise: Denoise,
        y: Example,
        logsnr_t: Scalar,
        logsnr_s: Scalar,
        state: Any,
        key: PRNGKey | None,
    ) -> tuple[Example, None]:
        return self.advance(denoise, y, Step(logsnr_t, logsnr_s, key)), None


def take_step(
    sampler: AbstractSampler,
    denoise: Denoise,
    y: Example,
    logsnr_t: Scalar,
    logsnr_s: Scalar,
    state: Any,
    key: PRNGKey | None,
) -> tuple[Example, Any]:
    """`sampler.step`, checked, with plain arrays for predictions, for loops over steps.

    **Raises:** `TypeError` unless it returns a latent like `y` and a state like `state`.
    """
    name = f"{type(sampler).__name__}.step"
    found = sampler.step(denoise, y, logsnr_t, logsnr_s, state, key)
    if not (isinstance(found, tuple) and len(found) == 2):
        raise TypeError(
            f"{name} must return a pair, the latent at logsnr_s and the new state (None for no state), got "
            f"{_described(found)}."
        )
    found = jax.tree.map(as_plain, found, is_leaf=lambda leaf: isinstance(leaf, Predicted))
    for what, before, after in zip(("latent", "state"), (y, state), found, strict=True):
        if not _alike(before, after):
            raise TypeError(
                f"{name} must return a {what} like the one it was given, {_described(before)}, got "
                f"{_described(after)}." + " The first state comes from init." * (what == "state")
            )
    return found


def _alike(before: Any, after: Any) -> bool:
    """Whether both have the same structure, shapes and dtypes; a Python number fits any dtype."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        return False
    pairs = zip(*(map(jax.typeof, jax.tree.leaves(tree)) for tree in (before, after)), strict=True)
    return all(old.shape == new.shape and (old.weak_type or old.dtype == new.dtype) for old, new in pairs)


def _described(value: Any) -> str:
    return eqx.tree_pformat(value, width=1000)
