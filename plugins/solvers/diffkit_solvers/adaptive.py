r"""The probability-flow ODE to a tolerance, through diffrax."""

from typing import Any, ClassVar

import equinox as eqx

import diffkit as dk
from diffkit.samplers import FORMS, AbstractOneStepSampler, Denoise, Step
from diffkit.typing import Example, check_at_least, check_positive

_METHODS = {"tsit5": "Tsit5", "dopri8": "Dopri8"}


@dk.register("sampler", "adaptive")
class Adaptive(AbstractOneStepSampler):
    r"""An adaptive Runge-Kutta solver of the probability-flow ODE.

    Solves each step of the grid to the tolerance, separately for each example (a batch waits for its
    slowest). One step of the grid is the cheapest. Choose it as a reference, or if the error must be known;
    it calls the network some hundreds of times.

    It solves the form `v`, $u = \cos\varphi\, y$ with $du / d\varphi = v$ and $\tan \varphi = \rho$, with
    the logsnr in place of time: $du / d\lambda = -\tfrac12 \sin\varphi \cos\varphi\, v$. Both stay of order
    one at both ends, so one absolute tolerance fits all noise levels.

    **Arguments:** `rtol`, `atol`: the relative and absolute tolerance of each of the solver's steps (about
    1e-6 is the limit in float32); `method`: `tsit5` (Tsitouras, order 5) or `dopri8` (Dormand and Prince,
    order 8, for float64); `max_steps`: the most steps of the solver in one step of the grid (more is an
    error at run time).

    **Raises:** `ValueError` for a tolerance that is not positive, an unknown method or less than one step.
    """

    order: ClassVar[None] = None
    calls: ClassVar[None] = None
    rtol: float = eqx.field(default=1e-5, static=True)
    atol: float = eqx.field(default=1e-5, static=True)
    method: str = eqx.field(default="tsit5", static=True)
    max_steps: int = eqx.field(default=4096, static=True)

    def __check_init__(self):
        for name in ("rtol", "atol"):
            check_positive(name, getattr(self, name))
        if self.method not in _METHODS:
            raise ValueError(f"method must be one of {', '.join(_METHODS)}, got {self.method!r}.")
        check_at_least("max_steps", self.max_steps, 1)

    def advance(self, denoise: Denoise, y: Example, step: Step) -> Example:
        import diffrax  # takes a second, for which every look-up in the registry would wait

        form, (logsnr_t, logsnr_s, _) = FORMS["v"], step

        def derivative(logsnr: Any, u: Any, _) -> Example:
            prediction = denoise(u / form.scale(logsnr), logsnr)
            return form.slope(logsnr) * form.quantity(prediction)

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(derivative),
            getattr(diffrax, _METHODS[self.method])(),
            t0=logsnr_t,
            t1=logsnr_s,
            dt0=None,
            y0=form.scale(logsnr_t) * y,
            stepsize_controller=diffrax.PIDController(rtol=self.rtol, atol=self.atol),
            max_steps=self.max_steps,
        )
        assert solution.ys is not None
        return solution.ys[0] / form.scale(logsnr_s)
