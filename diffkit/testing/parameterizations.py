"""The laws of parameterizations."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffkit.checks import determinant, target_row
from diffkit.processes import AbstractProcess, VarianceExploding, VariancePreserving
from diffkit.testing.base import Subject, law, mapped, require, require_close

# From below any schedule's minimum to above VDM's maximum, including 0, where alpha = sigma.
_LOGSNR = np.linspace(-12.0, 16.0, 57)
_PROCESSES = (VariancePreserving(), VarianceExploding())


def _cases() -> Iterator[tuple[AbstractProcess, dict[str, Any]]]:
    for process in _PROCESSES:
        yield process, {"logsnr": _LOGSNR, "process": type(process).__name__}


def _row(part: Any, process: AbstractProcess, dtype: Any) -> tuple[np.ndarray, ...]:
    return target_row(part, process, _LOGSNR.astype(dtype))


@law("parameterization")
def well_posed(subject: Subject) -> None:
    """The target is not parallel to the latent: the determinant alpha b - sigma a is finite, is not nearly
    zero and keeps its sign, for logsnr from -12 to 16."""
    for process, given in _cases():
        row = _row(subject.part, process, np.float32)
        det, size = determinant(*row)
        with np.errstate(all="ignore"):
            relative = det / size
        names = ("a", "b", "alpha", "sigma", "determinant")
        require(
            np.isfinite(relative) & (relative * np.sign(relative[0]) > 1e-3),
            given,
            dict(zip(names, (*row, det), strict=True)),
            "a determinant of one sign, as large as its terms within a factor of 1000",
        )


@law("parameterization")
def solve_inverts_target(subject: Subject) -> None:
    """solve inverts target: x and eps come back, for logsnr from -12 to 16, in float64 and in float32,
    within what rounding and the condition of the 2x2 system allow."""
    part = subject.part
    generator = np.random.default_rng(0)
    x, eps = generator.normal(size=(2, len(_LOGSNR), 4))

    def check(dtype):
        for process, given in _cases():

            def one(logsnr, x, eps, process=process):
                level = process.at(logsnr)
                z = process.perturb(x, eps, level)
                return part.solve(part.target(x, eps, level), z, level)

            found = mapped(one, *(value.astype(dtype) for value in (_LOGSNR, x, eps)))
            a, b, alpha, sigma = (v[:, None] for v in _row(part, process, dtype))
            det, size = determinant(a, b, alpha, sigma)
            # The effect of rounding z, the target and the determinant on each unknown.
            z, target = np.abs(alpha * x) + np.abs(sigma * eps), np.abs(a * x) + np.abs(b * eps)
            unit = 64 * np.finfo(dtype).eps * size / det**2
            for what, value, truth, bound in (
                ("x", found[0], x, unit * (np.abs(b) * z + sigma * target)),
                ("eps", found[1], eps, unit * (np.abs(a) * z + alpha * target)),
            ):
                worst = np.argmax(np.abs(value - truth) / bound, axis=1)
                at = np.arange(len(_LOGSNR)), worst
                at_worst = {"dtype": np.dtype(dtype).name, "x": x[at], "eps": eps[at]}
                close = value[at], truth[at], bound[at]
                require_close(*close, given | at_worst, f"{what} from solve", what)

    with jax.enable_x64(True):
        check(np.float64)
    check(np.float32)


@law("parameterization")
def error_factor_is_the_derivative(subject: Subject) -> None:
    """error_factor is the square of d target / d eps at a fixed latent, for logsnr from -12 to 16, in
    float64 and in float32."""
    part = subject.part
    for process, given in _cases():

        def factor(logsnr, process=process):
            return part.error_factor(process.at(logsnr))

        def derivative(logsnr, process=process):
            level = process.at(logsnr)
            z = 0.3 * jnp.ones_like(logsnr)

            def target(eps):
                return part.target((z - level.sigma * eps) / level.alpha, eps, level)

            return jnp.square(jax.jvp(target, (z,), (jnp.ones_like(z),))[1])

        with jax.enable_x64(True):
            expected = mapped(derivative, _LOGSNR)
            exact = mapped(factor, _LOGSNR)
        single = mapped(factor, _LOGSNR.astype(np.float32)).astype(np.float64)
        for dtype, found, tolerance in (("float64", exact, 1e-9), ("float32", single, 1e-3)):
            require_close(
                found / expected,
                1.0,
                tolerance,
                given | {"dtype": dtype, "(d target / d eps)^2": expected},
                "error_factor, by the squared derivative",
                "their ratio should be",
            )
