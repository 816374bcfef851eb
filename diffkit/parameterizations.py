r"""Parameterizations: what the network predicts.

Every target in the literature is a row $(a, b)$: target $= a\,x + b\,\epsilon$, with $a$ and $b$ functions
of the noise level. Together with $z = \alpha x + \sigma \epsilon$ it is a 2x2 system

$$\begin{pmatrix} \alpha & \sigma \\ a & b \end{pmatrix}
  \begin{pmatrix} x \\ \epsilon \end{pmatrix} =
  \begin{pmatrix} z \\ \text{target} \end{pmatrix},
  \qquad d = \alpha b - \sigma a,$$

so one solve turns any prediction into $x$ and $\epsilon$, and from there into any other. At fixed $z$ the
square of $\partial\,\text{target} / \partial\,\epsilon = d / \alpha$ is the factor between the squared
errors of the target and of $\epsilon$.
"""

import abc
import operator
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Generic, TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffkit.levels import NoiseLevel
from diffkit.registry import name_of, register
from diffkit.typing import Example, Scalar

P = TypeVar("P", bound="AbstractParameterization")
"""A class of parameterizations. Invariant: a prediction of one target is not a prediction of another."""


def _method(function: Callable[..., Any]) -> Callable[..., Array]:
    """Let a function of arrays take predictions of one target."""

    def method(*operands):
        targets = [each.parameterization for each in operands if isinstance(each, Predicted)]
        for other in targets[1:]:
            if other != targets[0]:
                one, another = _names(targets[0], other)
                raise TypeError(
                    f"operands must be predictions of one target, got one of {one} and one of "
                    f"{another}. Convert one of them (Prediction has .x, .eps, .v, .score and .as_target), "
                    "or take the arrays, .value."
                )
        return function(*map(as_plain, operands))

    return method


def _reflected(function: Callable[[Any, Any], Any]) -> Callable[..., Array]:
    # The left operand is not a prediction, or its own method would have been called.
    return lambda right, left: function(left, right.value)


class Predicted(eqx.Module, Generic[P]):
    """A prediction that knows its target.

    Passing a prediction of the wrong target raises an error that names both targets and the conversion.
    Static type checkers refuse it too: `Predicted[V]` and `Predicted[Epsilon]` are two types.

    Use it as an array: it has an array's attributes and methods, and the functions of NumPy and `jax.numpy`
    take it. The results are plain arrays, which are accepted as any target, as data are. Mixing predictions
    of two targets in arithmetic or comparison raises a `TypeError` that names both.

    **Arguments:** `value`: the array itself; `parameterization`: its target.

    ```python
    v = dk.Predicted(jnp.ones(2), dk.V())
    level = dk.VariancePreserving().at(0.0)
    x = dk.Prediction.of(v, jnp.zeros(2), level).x  # a Predicted[X]
    ```
    """

    value: Float[Array, "..."]
    # Static, like a type: the same for a batch, and on both sides of a jit.
    parameterization: P = eqx.field(static=True)

    # NumPy's arrays leave operators to this class, as they do to JAX's.
    __array_priority__ = 100

    def __getattr__(self, name: str) -> Any:
        # Nothing private: such a look-up tests whether this is an array, and it is not.
        if name.startswith("_") or name in ("value", "parameterization"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.value, name)

    def __jax_array__(self) -> Array:
        return self.value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.value, dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator[Array]:
        return iter(self.value)

    __add__ = _method(operator.add)
    __radd__ = _reflected(operator.add)
    __sub__ = _method(operator.sub)
    __rsub__ = _reflected(operator.sub)
    __mul__ = _method(operator.mul)
    __rmul__ = _reflected(operator.mul)
    __truediv__ = _method(operator.truediv)
    __rtruediv__ = _reflected(operator.truediv)
    __pow__ = _method(operator.pow)
    __rpow__ = _reflected(operator.pow)
    __matmul__ = _method(operator.matmul)
    __rmatmul__ = _reflected(operator.matmul)
    __neg__ = _method(operator.neg)
    __abs__ = _method(abs)
    __getitem__ = _method(operator.getitem)
    __lt__ = _method(operator.lt)
    __le__ = _method(operator.le)
    __gt__ = _method(operator.gt)
    __ge__ = _method(operator.ge)

    # Entry by entry, as for arrays; a module would be compared as a whole.
    __eq__ = _method(operator.eq)
    __ne__ = _method(operator.ne)  # pyright: ignore[reportAssignmentType]
    __hash__ = None  # pyright: ignore[reportAssignmentType]


DataLike = Example | Float[Predicted["X"], "*shape"]
"""Data, or a prediction of them."""

NoiseLike = Example | Float[Predicted["Epsilon"], "*shape"]
"""Noise, or a prediction of it."""


class AbstractParameterization(eqx.Module):
    """A target a x + b eps.

    **Attributes:** `outputs`: how many maps of the latent's shape the network returns, stacked along the
    first axis: 1 unless it predicts more than the target; `extra_steps`: T of the discrete-time bound in
    `extra_loss`, which trains all outputs but the target, `None` if there are none.
    """

    outputs: ClassVar[int] = 1

    @property
    def extra_steps(self) -> int | None:
        return None

    @abc.abstractmethod
    def coefficients(self, level: NoiseLevel) -> tuple[Scalar, Scalar]:
        """The row `(a, b)` at this noise level."""

    def target(self, x: DataLike, eps: NoiseLike, level: NoiseLevel) -> Example:
        """What a perfect network returns: a x + b eps.

        **Raises:** `TypeError` if `x` or `eps` is a prediction of something else.
        """
        x, eps = as_array(x, X(), "x"), as_array(eps, Epsilon(), "eps")
        a, b = self.coefficients(level)
        return a * x + b * eps

    def solve(
        self: P, prediction: Example | Float[Predicted[P], "*shape"], z: Example, level: NoiseLevel
    ) -> tuple[Float[Predicted["X"], "*shape"], Float[Predicted["Epsilon"], "*shape"]]:
        """`(x, eps)` from a prediction of the target and the latent `z`, of one shape: the 2x2 solve.

        **Raises:** `TypeError` if `prediction` is a prediction of something else.
        """
        prediction = as_array(prediction, self, "prediction")
        a, b = self.coefficients(level)
        det = level.alpha * b - level.sigma * a
        x = (b * z - level.sigma * prediction) / det
        eps = (level.alpha * prediction - a * z) / det
        return Predicted(x, X()), Predicted(eps, Epsilon())

    def read(self, output: Float[Array, "..."]) -> tuple[Example, Example | None]:
        """The network's output as a prediction of the target, and a `spread` (`Prediction`) or `None`."""
        return output, None

    def extra_loss(self, squares: Example, spread: Example, logsnr_t: Scalar, logsnr_s: Scalar) -> Scalar:
        """What `diffkit.DiffusionLoss` adds for one example, in nats, if there are `extra_steps`.

        **Arguments:** `squares`: the squared errors of eps, without a gradient; `spread`, from `read`;
        `logsnr_t` and `logsnr_s`: the ends of the step of length 1 / `extra_steps` from the time drawn, cut
        short at the data end.
        """
        raise NotImplementedError

    def error_factor(self, level: NoiseLevel) -> Scalar:
        """|target error|^2 = error_factor |eps error|^2 at this noise level."""
        a, b = self.coefficients(level)
        return jnp.square(b - a * level.rho)


@register("parameterization", "epsilon")
class Epsilon(AbstractParameterization):
    """The network predicts the noise (Ho, Jain and Abbeel 2020; VDM).

    Precise in x at high SNR, which decides likelihoods. At low SNR its errors are amplified by sigma /
    alpha in x, so it cannot start at zero SNR.
    """

    def coefficients(self, level: NoiseLevel) -> tuple[Scalar, Scalar]:
        return jnp.zeros_like(level.alpha), jnp.ones_like(level.alpha)


@register("parameterization", "x")
class X(AbstractParameterization):
    """The network predicts the data. At high SNR its errors are amplified by alpha / sigma in eps."""

    def coefficients(self, level: NoiseLevel) -> tuple[Scalar, Scalar]:
        return jnp.ones_like(level.alpha), jnp.zeros_like(level.alpha)


@register("parameterization", "v")
class V(AbstractParameterization):
    r"""The network predicts $v = (\alpha \epsilon - \sigma x) / \sqrt{\alpha^2 + \sigma^2}$.

    Introduced for the variance preserving process (Salimans and Ho 2022, progressive distillation, appendix
    D); the root makes it the same target under every process. Well conditioned at both ends: it is eps at
    high SNR turned into -x at low SNR.
    """

    def coefficients(self, level: NoiseLevel) -> tuple[Scalar, Scalar]:
        # hypot because sigma^2 overflows long before sigma.
        norm = jnp.hypot(level.alpha, level.sigma)
        return -level.sigma / norm, level.alpha / norm


@register("parameterization", "score")
class Score(AbstractParameterization):
    r"""The network predicts the score of the latent, $\nabla_z \log p(z) = -\epsilon / \sigma$.

    Its mean squared error is that of denoising score matching (Vincent 2011), which Song et al. 2021
    (arXiv 2011.13456, equation 7) minimise with a weight $\lambda(t)$. The score is of the size of
    $1 / \sigma$, and no network puts out 1 and 1000 equally well: the published code divides the output by
    $\sigma$ (the option `scaled`), which is `epsilon` up to a sign. Choose the score itself if noise levels
    are bounded from below, or for comparisons.

    **Arguments:** `scaled`: the network predicts $\sigma$ times the score, $-\epsilon$.
    """

    scaled: bool = eqx.field(default=False, static=True)

    def coefficients(self, level: NoiseLevel) -> tuple[Scalar, Scalar]:
        one = jnp.ones_like(level.sigma)
        return jnp.zeros_like(level.sigma), -one if self.scaled else -one / level.sigma


def as_array(given: Example | Predicted[P], meant: P, argument: str) -> Float[Array, "..."]:
    """The array of a prediction, checked against the target `meant`; a plain array is accepted as is.

    **Raises:** `TypeError` if `given` is a prediction of another target, naming `argument`, both targets
    and the conversion.
    """
    if not isinstance(given, Predicted):
        return given
    if given.parameterization == meant:
        return given.value
    forms = {"x": X(), "eps": Epsilon(), "v": V(), "score": Score()}
    form = next((name for name, part in forms.items() if part == meant), f"as_target({meant})")
    wanted, got = _names(meant, given.parameterization)
    raise TypeError(
        f"{argument} must be a prediction of {wanted}, got one of {got}. "
        f"Convert it: dk.Prediction.of(given, z, level).{form}"
    )


def as_plain(value: Any) -> Any:
    """The array of a prediction; anything else as it is."""
    return value.value if isinstance(value, Predicted) else value


def _names(*parts: AbstractParameterization) -> list[str]:
    names = [name_of("parameterization", part) or type(part).__name__ for part in parts]
    # Two of the same class differ in their options.
    return names if len({*names}) > 1 else [repr(part) for part in parts]
