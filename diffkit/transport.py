r"""Transport: carry a model trained under one process and schedule over to others, exactly.

In the rescaled latent $y = z / \alpha = x + \rho\,\epsilon$ every process is the same (VDM section 5.1). A
denoiser answers a question about $(y, \lambda)$; the latent of another process with the same $\lambda$ asks
the same question in other units,

$$\hat x'(z', \lambda) = \hat x\!\left(\frac{\alpha}{\alpha'}\, z',\ \lambda\right),$$

and the schedule says when: with the same endpoints, bound, samples and likelihood do not change.
"""

import math
import sys
import warnings
from types import FrameType
from typing import overload

import equinox as eqx
from jax.core import Tracer

from diffkit.denoiser import AbstractDenoiser, AbstractDerivedDenoiser, Prediction
from diffkit.model import DiffusionModel
from diffkit.processes import AbstractProcess
from diffkit.schedules import AbstractSchedule
from diffkit.typing import Condition, Example, MaybeKey, ScalarLike, as_float


class TransportWarning(UserWarning):
    """A model is used over another range of `logsnr` than it was made for."""


class Transported(AbstractDerivedDenoiser):
    """`denoiser` under another `process` than its own, made by `diffkit.equivalence.transport`."""

    denoiser: AbstractDenoiser
    process: AbstractProcess

    # Written out because static checkers would put the inherited `process` first.
    def __init__(self, denoiser: AbstractDenoiser, process: AbstractProcess):
        self.denoiser, self.process = denoiser, process

    def __call__(
        self, z: Example, logsnr: ScalarLike, condition: Condition = None, *, key: MaybeKey = None
    ) -> Prediction:
        logsnr = as_float(logsnr)
        here, there = self.process.at(logsnr), self.denoiser.process.at(logsnr)
        prediction = self.denoiser(z * (there.alpha / here.alpha), logsnr, condition, key=key)
        return Prediction(prediction.x, prediction.eps, here, prediction.spread)


@overload
def transport(what: AbstractDenoiser, *, to: AbstractProcess) -> AbstractDenoiser: ...


@overload
def transport(
    what: DiffusionModel,
    *,
    to: AbstractProcess | None = None,
    schedule: AbstractSchedule | None = None,
) -> DiffusionModel: ...


def transport(
    what: AbstractDenoiser | DiffusionModel,
    *,
    to: AbstractProcess | None = None,
    schedule: AbstractSchedule | None = None,
) -> AbstractDenoiser | DiffusionModel:
    """A denoiser or a model under another process, or a model under another schedule.

    Exact (VDM section 5.1): at equal `logsnr` the latents differ by the ratio of the alphas. It works for
    every target of the network. The result shares the parameters: training it starts from them.

    **Arguments:** `what`: a denoiser (trained, exact, guided) or a model; `to`: the process, by default
    unchanged; `schedule`: the new schedule of a model, by default unchanged. Other endpoints make it
    another model; `TransportWarning` says what is lost at which end. `diffkit.Truncated` cuts a wider
    schedule to the model's range.

    **Returns:** a denoiser for a denoiser, a model for a model.

    **Raises:** `ValueError` if neither a process nor a schedule is given, or a schedule for a denoiser.

    **Warns:** `TransportWarning`.

    ```python
    model = dk.preset("vdm", network="mlp").model(shape=(2,), key=jax.random.key(0))
    schedule = dk.Truncated(dk.Cosine(15.0, -15.0), *map(float, model.schedule.endpoints))
    other = dk.equivalence.transport(model, to=dk.VarianceExploding(), schedule=schedule)
    ```
    """
    if to is None and schedule is None:
        raise ValueError("transport needs to=, a process, or schedule=, got neither.")
    if isinstance(what, AbstractDenoiser):
        if schedule is not None:
            raise ValueError(
                "schedule is for a model: a denoiser is called with logsnr and has no schedule."
            )
        assert to is not None
        return _under(what, to)
    if schedule is not None:
        ends = (*what.schedule.endpoints, *schedule.endpoints)
        # Endpoints are unknown within a compiled function.
        if not any(isinstance(end, Tracer) for end in ends):
            data, noise, new_data, new_noise = map(float, ends)
            for sentence in range_losses((data, noise), (new_data, new_noise)):
                warnings.warn(sentence, TransportWarning, stacklevel=stacklevel(sys._getframe()))
    return carried(what, to, schedule)


def stacklevel(frame: FrameType) -> int:
    """How far up the stack the line is that called diffkit, past the wrappers that check types."""
    inside, depth = ("diffkit", "jaxtyping", "beartype", "equinox"), 1
    while frame.f_back is not None and frame.f_globals["__name__"].split(".")[0] in inside:
        frame, depth = frame.f_back, depth + 1
    return depth


def carried(
    model: DiffusionModel, to: AbstractProcess | None, schedule: AbstractSchedule | None
) -> DiffusionModel:
    """`transport` of a model, without checking the ranges."""
    denoiser = model.denoiser if to is None else _under(model.denoiser, to)
    schedule = model.schedule if schedule is None else schedule
    # Not by the constructor, which refuses a network built for another range.
    return eqx.tree_at(lambda m: (m.denoiser, m.schedule), model, (denoiser, schedule))


def _under(denoiser: AbstractDenoiser, process: AbstractProcess) -> AbstractDenoiser:
    if isinstance(denoiser, Transported):
        denoiser = denoiser.denoiser
    # Processes of the core have no arrays and are equal if their classes are.
    same = type(denoiser.process) is type(process)
    if same and eqx.tree_equal(denoiser.process, process) is True:
        return denoiser
    return Transported(denoiser, process)


# In nats of logsnr: below it, rho differs by less than a thousandth.
_SAME_END = 1e-3


def range_losses(trained: tuple[float, float], wanted: tuple[float, float]) -> tuple[str, ...]:
    """A sentence for each end where two ranges (max, min) of `logsnr` differ: what a model loses."""
    losses = []
    (data, noise), (new_data, new_noise) = trained, wanted
    unseen = "Between the two the network is asked for noise levels that it has never seen."
    if new_data > data + _SAME_END:
        losses.append(
            f"data end: the schedule begins at logsnr {new_data:.4g}, but the model was made for "
            f"{data:.4g} and less. {unseen} Set logsnr_max to {data:.4g}, or take schedule=truncated."
        )
    elif new_data < data - _SAME_END:
        losses.append(
            f"data end: the schedule begins at logsnr {new_data:.4g}, and what the model knows from "
            f"there to {data:.4g} is lost: noise of {math.exp(-new_data / 2):.2g} stays on the data, "
            f"where it was {math.exp(-data / 2):.2g}, and the reconstruction term pays for it."
        )
    if new_noise < noise - _SAME_END:
        losses.append(
            f"noise end: the schedule ends at logsnr {new_noise:.4g}, but the model was made for "
            f"{noise:.4g} and more. {unseen} Set logsnr_min to {noise:.4g}, or take schedule=truncated."
        )
    elif new_noise > noise + _SAME_END:
        losses.append(
            f"noise end: the schedule ends at logsnr {new_noise:.4g}, and what the model knows from "
            f"there to {noise:.4g} is lost: the last latent still has a signal-to-noise ratio of "
            f"{math.exp(new_noise):.2g}, where it had {math.exp(noise):.2g}, the prior term pays for it "
            "and samples start from the wrong distribution."
        )
    return tuple(losses)
