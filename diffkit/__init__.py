"""diffkit: interchangeable parts for diffusion models in JAX and Equinox.

Everything public is here or in the module named after its kind: `diffkit.schedules`,
`diffkit.processes`, `diffkit.samplers` and so on. Each is imported when it is first asked for.
"""

from typing import TYPE_CHECKING

from diffkit import console as console
from diffkit.lazy import lazy_imports
from diffkit.typechecking import check_types as check_types

check_types("diffkit")

if TYPE_CHECKING:
    from diffkit import analytic as analytic
    from diffkit import buffers as buffers
    from diffkit import configs as configs
    from diffkit import data as data
    from diffkit import decoders as decoders
    from diffkit import denoiser as denoiser
    from diffkit import equivalence as equivalence
    from diffkit import grids as grids
    from diffkit import guidance as guidance
    from diffkit import likelihood as likelihood
    from diffkit import model as model
    from diffkit import networks as networks
    from diffkit import objectives as objectives
    from diffkit import optimisers as optimisers
    from diffkit import parameterizations as parameterizations
    from diffkit import presets as presets
    from diffkit import processes as processes
    from diffkit import registry as registry
    from diffkit import reports as reports
    from diffkit import runs as runs
    from diffkit import samplers as samplers
    from diffkit import schedules as schedules
    from diffkit import testing as testing
    from diffkit import time_samplers as time_samplers
    from diffkit import training as training
    from diffkit import transport as transport
    from diffkit import typing as typing
    from diffkit import verification as verification
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
    from diffkit.objectives import DiffusionLoss as DiffusionLoss
    from diffkit.objectives import denoising_loss as denoising_loss
    from diffkit.objectives import vlb as vlb
    from diffkit.optimisers import AbstractOptimiser as AbstractOptimiser
    from diffkit.parameterizations import AbstractParameterization as AbstractParameterization
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
    from diffkit.reports import report as report
    from diffkit.runs import Run as Run
    from diffkit.runs import load_run as load_run
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
    from diffkit.training import EstimatorStatistics as EstimatorStatistics
    from diffkit.training import Fit as Fit
    from diffkit.training import TrainConfig as TrainConfig
    from diffkit.training import estimator_statistics as estimator_statistics
    from diffkit.training import evaluate as evaluate
    from diffkit.training import fit as fit
    from diffkit.verification import verify_run as verify_run
    from diffkit.weightings import ELBO as ELBO
    from diffkit.weightings import AbstractWeighting as AbstractWeighting
    from diffkit.weightings import Implied as Implied
    from diffkit.weightings import Monotone as Monotone
    from diffkit.weightings import Sigmoid as Sigmoid

__getattr__, __dir__ = lazy_imports(__name__)
