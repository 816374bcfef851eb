"""The laws of weightings."""

import numpy as np

from diffkit.testing.base import NotApplicable, Subject, law, mapped, require
from diffkit.testing.losses import check_weighting
from diffkit.weightings import Implied


@law(
    "weighting",
    "w is a finite, non-negative scalar over the range of logsnr, in float32, and not zero everywhere.",
)
def finite_and_non_negative(subject: Subject) -> None:
    weighting = subject.part
    maximum, minimum = subject.context["logsnr_range"]
    logsnr = np.linspace(minimum, maximum, 1001, dtype=np.float32)
    w = mapped(weighting, logsnr)
    given = {"logsnr": logsnr}
    require(
        np.isfinite(w) & (w >= 0), given=given, numbers={"w": w}, expected="a number of at least 0"
    )
    require(
        bool(w.max() > 0),
        given={"logsnr from": minimum, "to": maximum},
        numbers={"largest w": w.max()},
        expected="a positive weight somewhere",
    )


@law(
    "weighting",
    "denoising_loss with w is, up to a constant, the loss from which w was derived "
    "(diffkit.weightings.Implied), computed without w.",
)
def is_what_its_loss_implies(subject: Subject) -> None:
    weighting = subject.part
    if not isinstance(weighting, Implied):
        raise NotApplicable("a closed form: states no loss to derive it from")
    check_implied(weighting)


def check_implied(weighting: Implied) -> None:
    """The law above, for a weighting that states its loss."""
    names = [
        type(part).__name__
        for part in (
            weighting.parameterization,
            weighting.schedule,
            weighting.process,
            weighting.time_sampler,
        )
    ]
    factor = "" if weighting.factor is None else " times a factor"
    check_weighting(
        weighting,
        parameterization=weighting.parameterization,
        schedule=weighting.schedule,
        process=weighting.process,
        time_sampler=weighting.time_sampler,
        factor=weighting.factor,
        described="squared error of {} over {} under {}, times {}".format(*names) + factor,
    )
