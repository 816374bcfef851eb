"""diffkit: interchangeable parts for diffusion models in JAX and Equinox.

Everything public is here or in the module named after its kind: `diffkit.schedules`,
`diffkit.processes`, `diffkit.samplers` and so on.
"""

import importlib
from typing import TYPE_CHECKING

from diffkit.typing import check_types as check_types

check_types("diffkit")

from diffkit import analytic as analytic
from diffkit import data as data
from diffkit import equivalence as equivalence
from diffkit import networks as networks
from diffkit import samplers as samplers
from diffkit import weightings as weightings
from diffkit.buffers import Buffer as Buffer
from diffkit.buffers import trainable as trainable
from diffkit.decoders import AbstractDecoder as AbstractDecoder
from diffkit.decoders import DiscretizedDecoder as DiscretizedDecoder
from diffkit.decoders import GaussianDecoder as GaussianDecoder
from diffkit.denoiser import AbstractDenoiser as AbstractDenoiser
from diffkit.denoiser import Denoiser as Denoiser
from diffkit.denoiser import Prediction as Prediction
from diffkit.grids import AbstractGrid as AbstractGrid
from diffkit.grids import UniformLogSNR as UniformLogSNR
from diffkit.grids import UniformT as UniformT
from diffkit.guidance import Guided as Guided
from diffkit.guidance import guide as guide
from diffkit.likelihood import log_likelihood as log_likelihood
from diffkit.model import DiffusionModel as DiffusionModel
from diffkit.networks import AbstractNetwork as AbstractNetwork
from diffkit.objectives import VLB as VLB
from diffkit.objectives import denoising_loss as denoising_loss
from diffkit.objectives import vlb as vlb
from diffkit.parameterizations import AbstractParameterization as AbstractParameterization
from diffkit.parameterizations import (
    AbstractRangeParameterization as AbstractRangeParameterization,
)
from diffkit.parameterizations import Epsilon as Epsilon
from diffkit.parameterizations import Predicted as Predicted
from diffkit.parameterizations import Score as Score
from diffkit.parameterizations import V as V
from diffkit.parameterizations import X as X
from diffkit.presets import Loss as Loss
from diffkit.presets import Preset as Preset
from diffkit.presets import part as part
from diffkit.presets import preset as preset
from diffkit.processes import AbstractProcess as AbstractProcess
from diffkit.processes import NoiseLevel as NoiseLevel
from diffkit.processes import VarianceExploding as VarianceExploding
from diffkit.processes import VariancePreserving as VariancePreserving
from diffkit.registry import available as available
from diffkit.registry import get as get
from diffkit.registry import plugins as plugins
from diffkit.registry import register as register
from diffkit.samplers import AbstractSampler as AbstractSampler
from diffkit.samplers import invert as invert
from diffkit.samplers import noised as noised
from diffkit.samplers import sample as sample
from diffkit.samplers import sample_trajectory as sample_trajectory
from diffkit.schedules import AbstractSchedule as AbstractSchedule
from diffkit.schedules import AbstractVarianceMinimising as AbstractVarianceMinimising
from diffkit.schedules import Cosine as Cosine
from diffkit.schedules import LinearLogSNR as LinearLogSNR
from diffkit.schedules import Truncated as Truncated
from diffkit.time_samplers import AbstractAdaptiveTimeSampler as AbstractAdaptiveTimeSampler
from diffkit.time_samplers import AbstractTimeSampler as AbstractTimeSampler
from diffkit.time_samplers import Adaptive as Adaptive
from diffkit.time_samplers import LowDiscrepancy as LowDiscrepancy
from diffkit.time_samplers import Stratified as Stratified
from diffkit.time_samplers import Uniform as Uniform
from diffkit.weightings import ELBO as ELBO
from diffkit.weightings import AbstractWeighting as AbstractWeighting
from diffkit.weightings import Implied as Implied
from diffkit.weightings import Monotone as Monotone
from diffkit.weightings import Sigmoid as Sigmoid

if TYPE_CHECKING:
    from diffkit.reports import report as report
    from diffkit.runs import Run as Run
    from diffkit.runs import load_run as load_run
    from diffkit.training import EstimatorStatistics as EstimatorStatistics
    from diffkit.training import Fit as Fit
    from diffkit.training import TrainConfig as TrainConfig
    from diffkit.training import estimator_statistics as estimator_statistics
    from diffkit.training import evaluate as evaluate
    from diffkit.training import fit as fit

# What needs optax and grain is imported when it is first asked for.
_LAZY = {
    "EstimatorStatistics": "training",
    "estimator_statistics": "training",
    "Fit": "training",
    "TrainConfig": "training",
    "evaluate": "training",
    "fit": "training",
    "Run": "runs",
    "load_run": "runs",
    "report": "reports",
}


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(f"diffkit.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'diffkit' has no attribute {name!r}.")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY} - {"TYPE_CHECKING", "importlib"})
