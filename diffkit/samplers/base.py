r"""Samplers: from noise to data.

A sampler works in the rescaled latent $y = z / \alpha = x + \rho\,\epsilon$, $\rho = e^{-\lambda/2}$,
where every process is the variance exploding one; so each sampler is written once and runs under
every process. One step goes from $\lambda_t$ to a less noisy $\lambda_s > \lambda_t$.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx

from diffkit.denoiser import Prediction
from diffkit.typing import Example, PRNGKey, Scalar

Denoise = Callable[[Example, Scalar], Prediction]
"""The denoiser in the rescaled latent: `(y, logsnr) -> Prediction`."""


class AbstractSampler(eqx.Module):
    """One step of a sampler, and what it carries from step to step."""

    @property
    @abc.abstractmethod
    def stochastic(self) -> bool:
        """Whether `step` uses its key. A sampler that does not is never handed one."""

    @property
    @abc.abstractmethod
    def order(self) -> int | None:
        """The order of convergence in the number of steps, on a grid that is refined.

        For a deterministic sampler that of the error against the exact probability-flow ODE, for a
        stochastic one the weak order: that of mean and variance. `None` means that each step is
        exact to a tolerance of the sampler's own.
        """

    @property
    @abc.abstractmethod
    def calls(self) -> int | None:
        """Calls of the network per step; `None` if that varies."""

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

        **Arguments:**

        - `denoise`: the denoiser in the rescaled latent.
        - `y`: the rescaled latent at `logsnr_t`.
        - `logsnr_t`, `logsnr_s`: from where to where, `logsnr_t < logsnr_s`.
        - `state`: what `init` or the previous step returned.
        - `key`: for this step and this example, or `None` if the sampler is not `stochastic`.

        **Returns:** the rescaled latent at `logsnr_s`, and the new state.
        """
