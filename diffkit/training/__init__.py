"""Training: the loop, its state, checkpoints, metrics, evaluation and figures."""

from typing import TYPE_CHECKING

from diffkit.lazy import lazy_imports

if TYPE_CHECKING:
    from diffkit.training.checkpoints import CheckpointError as CheckpointError
    from diffkit.training.checkpoints import Checkpoints as Checkpoints
    from diffkit.training.checkpoints import CheckpointWarning as CheckpointWarning
    from diffkit.training.config import TrainConfig as TrainConfig
    from diffkit.training.evaluation import Evaluation as Evaluation
    from diffkit.training.evaluation import evaluate as evaluate
    from diffkit.training.figures import save_curves as save_curves
    from diffkit.training.figures import save_samples as save_samples
    from diffkit.training.figures import save_schedule as save_schedule
    from diffkit.training.figures import save_statistics as save_statistics
    from diffkit.training.interruption import Interrupted as Interrupted
    from diffkit.training.loop import Fit as Fit
    from diffkit.training.loop import check_data as check_data
    from diffkit.training.loop import fit as fit
    from diffkit.training.metrics import MetricsWarning as MetricsWarning
    from diffkit.training.metrics import StepInfo as StepInfo
    from diffkit.training.metrics import WeightsAndBiases as WeightsAndBiases
    from diffkit.training.metrics import read_metrics as read_metrics
    from diffkit.training.nonfinite import Cause as Cause
    from diffkit.training.nonfinite import replay as replay
    from diffkit.training.state import METRICS as METRICS
    from diffkit.training.state import Objective as Objective
    from diffkit.training.state import TrainState as TrainState
    from diffkit.training.state import init_state as init_state
    from diffkit.training.state import train_steps as train_steps
    from diffkit.training.statistics import EstimatorStatistics as EstimatorStatistics
    from diffkit.training.statistics import Profile as Profile
    from diffkit.training.statistics import estimator_statistics as estimator_statistics

__getattr__, __dir__ = lazy_imports(__name__)
