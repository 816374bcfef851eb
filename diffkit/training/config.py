"""The settings of the training loop."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Final

from diffkit.data import check_policy
from diffkit.registry import allow

DECAYS: Final = ("constant", "cosine", "linear", "rsqrt")
NONFINITE: Final = ("stop", "skip")


@allow
@dataclass(frozen=True)
class TrainConfig:
    """How to train a model: the settings that are neither parts nor data.

    **Arguments:**

    - `steps`: optimiser steps.
    - `batch_size`: examples per step.
    - `accumulate`: compute the gradient of a batch in this many parts, one after another, to save memory.
      The step is that of the whole batch. Must divide `batch_size`.
    - `learning_rate`: of the optimiser, after warm-up.
    - `interior_learning_rate`: the same for the interior of a schedule that minimises the variance, which
      follows another objective (`diffkit.AbstractVarianceMinimising`), by Adam under every optimiser.
    - `warmup`: steps over which the learning rate rises linearly from 0. With a `decay` to 0, at most half
      of all steps.
    - `decay`: `"constant"`; `"cosine"` or `"linear"`, to 0 at the end, after `steps`; or `"rsqrt"`, as the
      inverse root of the step: half the learning rate at 4 times `warmup`.
    - `weight_decay`: of an optimiser that has one, for the denoiser only: it does not pull a schedule
      towards zero.
    - `decay_biases`: whether the weight decay acts on biases too.
    - `b1`, `b2`: of AdamW and Adam.
    - `clip`: the largest global norm of a gradient, without such an interior's; 0 does not clip.
    - `ema`: the decay per step of the exponential moving average of the parameters; 0 follows them.
    - `ema_warmup`: whether to limit the decay of step n to (1 + n) / (10 + n), so the average soon forgets
      the initial parameters.
    - `condition_dropout`: the probability of replacing an example's condition by zeros, so the model also
      learns the distribution without it, as guidance needs (`diffkit.Guided`; Ho and Salimans 2022, arXiv
      2207.12598, algorithm 1). No effect on data without conditions.
    - `learn_endpoints`: whether to train the endpoints of a schedule that has trainable ones. `None` trains
      them only under the weighting `ELBO`: no other loss bounds the likelihood over endpoints, and it could
      fall by moving them alone.
    - `loss_steps`: T, the `steps` of `diffkit.DiffusionLoss`; `None` trains in continuous time.
    - `seed`: of the order of the data, the noise and the times.
    - `steps_per_dispatch`: steps in one call of the compiled function, at most all of them; metrics are
      recorded after each.
    - `checkpoint_every`: steps between checkpoints; 0 writes only the last one.
    - `checkpoint_minutes`: a checkpoint also after this many minutes without one; 0 for none.
    - `nonfinite`: what to do about a step whose loss or gradient is not finite. `"stop"` is an error that
      says why, and leaves what `diffkit replay` runs again. `"skip"` takes the step without its update, as
      if its batch had not been drawn, and counts it in the metric `skipped`; 100 in a row are an error.
    - `evaluate_every`: steps between evaluations on test data; 0 for none.
    - `evaluate_passes`: draws per test example in each of those.
    - `data_changed`: when a run goes on with other data than before: `"refuse"`, `"warn"`, or `"ignore"`
      (`diffkit.data.check_identity`).

    **Raises:** `ValueError` for a value out of its range.
    """

    steps: int = 2000
    batch_size: int = 128
    accumulate: int = 1
    learning_rate: float = 1e-3
    interior_learning_rate: float = 1e-2
    warmup: int = 100
    decay: str = "cosine"
    weight_decay: float = 0.01
    decay_biases: bool = True
    b1: float = 0.9
    b2: float = 0.99
    clip: float = 1.0
    ema: float = 0.999
    ema_warmup: bool = True
    condition_dropout: float = 0.1
    learn_endpoints: bool | None = None
    loss_steps: int | None = None
    seed: int = 0
    steps_per_dispatch: int = 10
    checkpoint_every: int = 500
    checkpoint_minutes: float = 10.0
    nonfinite: str = "stop"
    evaluate_every: int = 0
    evaluate_passes: int = 1
    data_changed: str = "refuse"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"train.{field.name} must be a finite number, got {value}.")
        counts = ("steps", "batch_size", "accumulate", "steps_per_dispatch", "evaluate_passes")
        others = ("warmup", "weight_decay", "clip", "seed")
        others += ("checkpoint_every", "checkpoint_minutes", "evaluate_every")
        for name in counts + others:
            least, value = int(name in counts), getattr(self, name)
            if value < least:
                raise ValueError(f"train.{name} must be at least {least}, got {value}.")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"train.accumulate must divide train.batch_size = {self.batch_size}, got {self.accumulate}."
            )
        for name in ("learning_rate", "interior_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"train.{name} must be positive, got {getattr(self, name)}.")
        if self.loss_steps is not None and self.loss_steps < 1:
            raise ValueError(f"train.loss_steps must be at least 1 or None, got {self.loss_steps}.")
        if not 0 <= self.condition_dropout <= 1:
            raise ValueError(f"train.condition_dropout must be in [0, 1], got {self.condition_dropout}.")
        for name in ("b1", "b2", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be in [0, 1), got {getattr(self, name)}.")
        check_policy(self.data_changed)
        if self.decay not in DECAYS:
            raise ValueError(f"train.decay must be one of {', '.join(DECAYS)}, got {self.decay!r}.")
        if self.nonfinite not in NONFINITE:
            raise ValueError(
                f"train.nonfinite must be one of {', '.join(NONFINITE)}, got {self.nonfinite!r}."
            )
