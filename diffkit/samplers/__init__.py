"""Samplers: from noise to data, under every process.

Holds every registered sampler, including those of plugins, under its registered name and that of its class
or function: `diffkit.samplers.Multistep`, `diffkit.samplers.heun` (`diffkit.available("sampler")`).
"""

from typing import Any

from diffkit import registry
from diffkit.samplers.ancestral import Ancestral as Ancestral
from diffkit.samplers.base import AbstractOneStepSampler as AbstractOneStepSampler
from diffkit.samplers.base import AbstractSampler as AbstractSampler
from diffkit.samplers.base import Denoise as Denoise
from diffkit.samplers.base import Step as Step
from diffkit.samplers.base import take_step as take_step
from diffkit.samplers.ddim import DDIM as DDIM
from diffkit.samplers.forms import FORMS as FORMS
from diffkit.samplers.forms import LONGEST as LONGEST
from diffkit.samplers.forms import Form as Form
from diffkit.samplers.forms import between as between
from diffkit.samplers.forms import is_long as is_long
from diffkit.samplers.loop import Trajectory as Trajectory
from diffkit.samplers.loop import invert as invert
from diffkit.samplers.loop import noised as noised
from diffkit.samplers.loop import sample as sample
from diffkit.samplers.loop import sample_trajectory as sample_trajectory
from diffkit.samplers.runge_kutta import RungeKutta2 as RungeKutta2


def _registered() -> dict[str, Any]:
    parts = {name: registry.get("sampler", name) for name in registry.available("sampler")}
    return {getattr(part, "__name__", name): part for name, part in parts.items()} | parts


def __getattr__(name: str) -> Any:
    # Nothing private: looking for it must not import the plugins.
    if not name.startswith("_") and name in (parts := _registered()):
        return parts[name]
    raise AttributeError(f"module 'diffkit.samplers' has no attribute {name!r}.")


def __dir__() -> list[str]:
    return sorted({*globals(), *_registered()} - {"Any", "registry"})
