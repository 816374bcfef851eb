"""Optimisers: how a gradient becomes a step.

The training loop handles learning rate, clipping, averaging and a schedule's interior alike for all
(`diffkit.TrainConfig`). Only making a transformation imports optax.
"""

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
from jaxtyping import PyTree

from diffkit.registry import register
from diffkit.typing import check_at_least

if TYPE_CHECKING:
    from optax import GradientTransformation, Schedule
else:
    GradientTransformation = Schedule = Any

Mask = Callable[[PyTree], PyTree]
"""Maps parameters to a tree of the same structure: `True` for each leaf with weight decay."""


class AbstractOptimiser(eqx.Module):
    """Makes a gradient transformation from its options.

    An option that is `None` takes the setting of the same name in `diffkit.TrainConfig`, such as `b1` or
    `weight_decay`.
    """

    @abc.abstractmethod
    def transformation(self, learning_rate: Schedule, decays: Mask) -> GradientTransformation:
        """The optax transformation, whose updates are added to the parameters.

        **Arguments:** `learning_rate`: a function of the number of earlier steps; `decays`: a mask for
        weight decay, which excludes schedules; called with the parameters, or with some of them masked.
        """


class _AbstractChecked(AbstractOptimiser):
    def __check_init__(self):
        for name in ("b1", "b2", "momentum", "decay_rate"):
            value = getattr(self, name, None)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}.")
        for name in ("eps", "weight_decay"):
            value = getattr(self, name, None)
            if value is not None:
                check_at_least(name, value, 0)


class _AbstractOptax(_AbstractChecked):
    """A function of optax with the options of the class; those with weight decay take its mask."""

    if TYPE_CHECKING:  # where an abstract one would be an argument of every constructor
        function: ClassVar[str]
    else:
        function: eqx.AbstractVar[str]

    def transformation(self, learning_rate: Schedule, decays: Mask) -> GradientTransformation:
        import optax

        mask = {"mask": decays} if "weight_decay" in vars(self) else {}
        return getattr(optax, self.function)(learning_rate, **mask, **vars(self))


@register("optimiser", "adamw")
class AdamW(_AbstractOptax):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101).

    **Arguments:** `b1`, `b2`: decay rates of the two moments, by default `train.b1` and `train.b2`; `eps`:
    added to the root of the second; `weight_decay`: times the learning rate, by default
    `train.weight_decay`; `nesterov`: Nesterov momentum.

    **Raises:** `ValueError` for an option out of its range.
    """

    function: ClassVar[str] = "adamw"
    b1: float | None = None
    b2: float | None = None
    eps: float = 1e-8
    weight_decay: float | None = None
    nesterov: bool = False


@register("optimiser", "adam")
class Adam(_AbstractOptax):
    """Adam, without weight decay (Kingma and Ba 2015, arXiv 1412.6980).

    **Arguments:** as for `AdamW`.

    **Raises:** `ValueError` for an option out of its range.
    """

    function: ClassVar[str] = "adam"
    b1: float | None = None
    b2: float | None = None
    eps: float = 1e-8
    nesterov: bool = False


@register("optimiser", "sgd")
class SGD(_AbstractOptax):
    """Stochastic gradient descent with momentum and without weight decay.

    Its learning rate has the unit of parameters over gradients and is usually far larger than Adam's.

    **Arguments:** `momentum`: the decay rate of the sum of gradients; `nesterov`: Nesterov momentum.

    **Raises:** `ValueError` for an option out of its range.
    """

    function: ClassVar[str] = "sgd"
    momentum: float = 0.9
    nesterov: bool = False


@register("optimiser", "lion")
class Lion(_AbstractOptax):
    """Lion: the sign of a momentum (Chen et al. 2023, arXiv 2302.06675).

    Every parameter moves by the learning rate in every step: use 3 to 10 times less than for `AdamW`, and
    weight decay larger by the same factor.

    **Arguments:** `b1`: the weight of the momentum in the sign; `b2`: its decay rate; `weight_decay`: as
    for `AdamW`.

    **Raises:** `ValueError` for an option out of its range.
    """

    function: ClassVar[str] = "lion"
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float | None = None


@register("optimiser", "muon")
class Muon(_AbstractChecked):
    """Muon: orthogonalised momentum for the matrices of the network, Adam for everything else.

    A matrix is the last two axes of an array named `weight`, as in `diffkit.networks`, separately for each
    layer of a stack and each tap of a convolution. Its update has the root mean square `rms` for every
    shape, about that of Adam, so one learning rate serves both (Jordan et al. 2024; Liu et al. 2025, arXiv
    2502.16982).

    **Arguments:** `momentum`, `rms`: of the matrices; `nesterov`: Nesterov momentum, in Adam too;
    `weight_decay`: of the matrices, times the learning rate; `b1`, `b2`: of Adam. The last three are by
    default those of `TrainConfig`.

    **Raises:** `ValueError` for an option out of its range.
    """

    momentum: float = 0.95
    nesterov: bool = True
    rms: float = 0.2
    weight_decay: float | None = None
    b1: float | None = None
    b2: float | None = None

    def transformation(self, learning_rate: Schedule, decays: Mask) -> GradientTransformation:
        import optax

        def matrices(params: PyTree) -> PyTree:
            def axes(path: tuple[Any, ...], leaf: Any, decays: bool) -> Any:
                named = getattr(path[-1], "name", None) == "weight"
                if not (decays and named and leaf.ndim >= 2):
                    return None
                return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

            return jax.tree_util.tree_map_with_path(axes, params, decays(params))

        options = vars(self)
        return optax.contrib.muon(
            learning_rate,
            beta=self.momentum,
            nesterov=self.nesterov,
            weight_decay=options["weight_decay"],
            weight_decay_mask=decays,
            adam_b1=options["b1"],
            adam_b2=options["b2"],
            muon_weight_dimension_numbers=matrices,
            consistent_rms=self.rms,
        )


@register("optimiser", "adafactor")
class Adafactor(_AbstractChecked):
    """Adam with a factored second moment, for little memory (Shazeer and Stern 2018, arXiv 1804.04235).

    **Arguments:** `min_size`: matrices with fewer rows or columns keep the whole second moment;
    `decay_rate`: the exponent c of its decay rate 1 - n^-c in step n; `clip`: the largest root mean square
    of an update before the learning rate; `relative`: multiply the learning rate by the root mean square of
    the parameters, as in the paper; `momentum`: of the updates, `0` for none; `weight_decay`: as for
    `AdamW`.

    **Raises:** `ValueError` for an option out of its range.
    """

    min_size: int = 128
    decay_rate: float = 0.8
    clip: float = 1.0
    relative: bool = False
    momentum: float = 0.0
    weight_decay: float | None = None

    def transformation(self, learning_rate: Schedule, decays: Mask) -> GradientTransformation:
        import optax

        # Optax decays independently of the learning rate. Here decay means the same as for the others.
        return optax.chain(
            optax.adafactor(
                min_dim_size_to_factor=self.min_size,
                decay_rate=self.decay_rate,
                clipping_threshold=self.clip,
                multiply_by_parameter_scale=self.relative,
                momentum=self.momentum or None,
            ),
            optax.scale(-1.0),
            optax.add_decayed_weights(vars(self)["weight_decay"], decays),
            optax.scale_by_learning_rate(learning_rate),
        )
