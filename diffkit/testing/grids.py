"""The laws of grids."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from diffkit.schedules import AbstractSchedule, Cosine, LinearLogSNR
from diffkit.testing.base import LOGSNR_RANGE, Subject, law, require, require_close

_STEPS = (1, 2, 3, 10, 50, 640)


def _cases(part: Any) -> Iterator[tuple[AbstractSchedule, dict[str, Any], np.ndarray]]:
    for schedule in (LinearLogSNR(*LOGSNR_RANGE), Cosine(*LOGSNR_RANGE), LinearLogSNR(12.4, -9.0)):
        for steps in _STEPS:
            given = {"schedule": str(schedule), "steps": steps}
            yield schedule, given, np.asarray(part(schedule, steps))


@law("grid")
def number_of_points(subject: Subject) -> None:
    """There are steps + 1 values of logsnr, all finite, for 1 to 640 steps."""
    for _, given, logsnr in _cases(subject.part):
        count = given["steps"] + 1
        require(logsnr.shape == (count,), given, {"points": logsnr.size}, f"{count}")
        require(np.isfinite(logsnr), given, {"logsnr": logsnr}, "finite values")


@law("grid")
def strictly_increasing(subject: Subject) -> None:
    """logsnr increases strictly: no step has length zero, even at 640 steps in float32."""
    for _, given, logsnr in _cases(subject.part):
        require(
            np.diff(logsnr) > 0,
            given | {"step": np.arange(len(logsnr) - 1)},
            {"logsnr": logsnr[:-1], "next logsnr": logsnr[1:]},
            "the second above the first",
        )


@law("grid")
def ends_at_the_endpoints(subject: Subject) -> None:
    """The first and the last point are the schedule's endpoints."""
    for schedule, given, logsnr in _cases(subject.part):
        maximum, minimum = (float(end) for end in schedule.endpoints)
        given |= {"point": np.array([0, len(logsnr) - 1])}
        ends = np.array([minimum, maximum])
        require_close(logsnr[[0, -1]], ends, 1e-4, given, "logsnr", "the schedule's")
