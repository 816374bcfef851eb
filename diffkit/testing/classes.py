"""The laws as test classes: subclass that of a kind, name the part, and pytest runs each law."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from diffkit.testing.base import Law, NotApplicable, Subject, laws


class _Laws:
    """The base of the classes.

    **Attributes:** `part`: an instance or a constructor; `context`: for a constructor, instead of the
    defaults, such as another `shape` (`diffkit.registry.CONTEXT`).
    """

    kind: ClassVar[str]
    part: ClassVar[Any]
    context: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def __init_subclass__(cls, *, kind: str | None = None, **rest: Any):
        super().__init_subclass__(**rest)
        if kind is not None:
            cls.kind = kind
            for one in laws(kind):
                setattr(cls, f"test_{one.name}", _method(one))


def _method(one: Law) -> Callable[[Any], None]:
    def test(self: Any) -> None:
        cls = type(self)
        if not hasattr(cls, "part"):
            name = cls.__name__
            raise TypeError(f"{name} must name the part that it tests: part = MyPart(), in the class.")
        try:
            # From the class: a function as a part must not become a method.
            one.on(Subject(one.kind, cls.part, context=cls.context))
        except NotApplicable as reason:
            import pytest

            pytest.skip(str(reason))

    test.__doc__ = one.sentence
    test.__name__ = test.__qualname__ = f"test_{one.name}"
    return test


class ScheduleLaws(_Laws, kind="schedule"):
    """The laws of schedules, for the schedule `part`."""


class ProcessLaws(_Laws, kind="process"):
    """The laws of processes, for the process `part`."""


class ParameterizationLaws(_Laws, kind="parameterization"):
    """The laws of parameterizations, for the parameterization `part`."""


class WeightingLaws(_Laws, kind="weighting"):
    """The laws of weightings, for the weighting `part`."""


class TimeSamplerLaws(_Laws, kind="time_sampler"):
    """The laws of time samplers, for the time sampler `part`."""


class SamplerLaws(_Laws, kind="sampler"):
    """The laws of samplers, for the sampler `part`."""


class GridLaws(_Laws, kind="grid"):
    """The laws of grids, for the grid `part`."""


class DecoderLaws(_Laws, kind="decoder"):
    """The laws of decoders, for the decoder `part`."""


class NetworkLaws(_Laws, kind="network"):
    """The laws of networks, for the network `part`: its class, or a `functools.partial` of it.

    An instance is tested on `context["shape"]`, by default (1, 8, 8), and in its own dtype only.
    """


class OptimiserLaws(_Laws, kind="optimiser"):
    """The laws of optimisers, for the optimiser `part`."""


class DataLaws(_Laws, kind="data"):
    """The laws of data, for the dataset `part`."""


class PresetLaws(_Laws, kind="preset"):
    """The laws of presets, for the `diffkit.Preset` `part`."""
