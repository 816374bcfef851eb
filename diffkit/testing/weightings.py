"""The laws of weightings."""

import numpy as np

from diffkit.testing.base import NotApplicable, Subject, law, mapped, require
from diffkit.testing.losses import check_weighting
from diffkit.weightings import Implied


@law("weighting")
def finite_and_non_negative(subject: Subject) -> None:
    """w is a finite, non-negative scalar over the range of logsnr, in float32, and not zero everywhere."""
    maximum, minimum = subject.context["logsnr_range"]
    logsnr = np.linspace(minimum, maximum, 1001, dtype=np.float32)
    w = mapped(subject.part, logsnr)
    given, most = {"logsnr from": minimum, "to": maximum}, w.max()
    require(np.isfinite(w) & (w >= 0), {"logsnr": logsnr}, {"w": w}, "a number of at least 0")
    require(bool(most > 0), given, {"largest w": most}, "a positive weight somewhere")


@law("weighting")
def is_what_its_loss_implies(subject: Subject) -> None:
    """denoising_loss with w is, up to a constant, the loss from which w was derived
    (diffkit.weightings.Implied), computed without w."""
    weighting = subject.part
    if not isinstance(weighting, Implied):
        raise NotApplicable("a closed form: states no loss to derive it from")
    kinds = ("parameterization", "schedule", "process", "time_sampler")
    parts = {kind: getattr(weighting, kind) for kind in kinds}
    names = [type(part).__name__ for part in parts.values()]
    described = "squared error of {} over {} under {}, times {}".format(*names)
    if weighting.factor is not None:
        described += " times a factor"
    check_weighting(weighting, **parts, factor=weighting.factor, described=described)
