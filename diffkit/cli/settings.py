"""The settings of the commands, apart from parts, data and the training loop."""

from dataclasses import dataclass


def _at_least(settings: object, **least: int) -> None:
    for name, value in least.items():
        given = getattr(settings, name)
        if given is not None and given < value:
            raise ValueError(f"{name} must be at least {value}, got {given}.")


@dataclass(frozen=True)
class TrainSettings:
    """`diffkit train`.

    **Arguments:** `run`: the run directory, by default one under `runs/` named after the overrides, so
    that the same command goes on with the same run; `passes`: draws per test example in the evaluation
    at the end; `samples`, `sample_steps`: how many samples to draw then, in how many steps (0 samples:
    none).
    """

    run: str | None = None
    passes: int = 16
    samples: int = 64
    sample_steps: int = 250

    def __post_init__(self):
        _at_least(self, passes=1, samples=0, sample_steps=1)


@dataclass(frozen=True)
class EvaluateSettings:
    """`diffkit evaluate RUN`.

    **Arguments:** `run`: the run directory; `steps`: T of the discrete-time bound, by default
    continuous time; `passes`: draws per example; `batch_size`: latents per call of the network;
    `seed`: of the draws; `split`: `test` or `train`.
    """

    run: str | None = None
    steps: int | None = None
    passes: int = 16
    batch_size: int = 512
    seed: int = 0
    split: str = "test"

    def __post_init__(self):
        _at_least(self, steps=1, passes=1, batch_size=1, seed=0)
        if self.split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {self.split!r}.")


@dataclass(frozen=True)
class SampleSettings:
    """`diffkit sample RUN`.

    **Arguments:** `run`: the run directory; `count`: how many samples; `steps`: of the sampler;
    `seed`; `out`: the PNG to write, by default in the run directory; the samples as stored go beside
    it as .npy.
    """

    run: str | None = None
    count: int = 64
    steps: int = 250
    seed: int = 0
    out: str | None = None

    def __post_init__(self):
        _at_least(self, count=1, steps=1, seed=0)
