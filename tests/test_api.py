"""The public names, the shape of the class hierarchy, and what importing costs."""

import subprocess
import sys
import types

import equinox as eqx
import pytest

import diffkit as dk
import diffkit_vdm

PUBLIC = [
    "AbstractAdaptiveTimeSampler",
    "AbstractDecoder",
    "AbstractDenoiser",
    "AbstractGrid",
    "AbstractNetwork",
    "AbstractOptimiser",
    "AbstractParameterization",
    "AbstractProcess",
    "AbstractSampler",
    "AbstractSchedule",
    "AbstractTimeSampler",
    "AbstractVarianceMinimising",
    "AbstractWeighting",
    "Adaptive",
    "Buffer",
    "Cosine",
    "Denoiser",
    "DiffusionLoss",
    "DiffusionModel",
    "DiscretizedDecoder",
    "ELBO",
    "Epsilon",
    "EstimatorStatistics",
    "Fit",
    "GaussianDecoder",
    "Guided",
    "Implied",
    "LinearLogSNR",
    "Loss",
    "LowDiscrepancy",
    "Monotone",
    "NoiseLevel",
    "Predicted",
    "Prediction",
    "Preset",
    "Run",
    "Score",
    "Sigmoid",
    "Stratified",
    "TrainConfig",
    "Truncated",
    "Uniform",
    "UniformLogSNR",
    "UniformT",
    "V",
    "VLB",
    "VarianceExploding",
    "VariancePreserving",
    "X",
    "available",
    "check_types",
    "denoising_loss",
    "estimator_statistics",
    "evaluate",
    "fit",
    "get",
    "guide",
    "invert",
    "load_run",
    "log_likelihood",
    "noised",
    "part",
    "plugins",
    "preset",
    "register",
    "report",
    "sample",
    "sample_trajectory",
    "trainable",
    "verify_run",
    "vlb",
]


def test_public_names():
    # A change of the public names must be a change of this list.
    found = [
        name
        for name in dir(dk)
        if not name.startswith("_") and not isinstance(getattr(dk, name), types.ModuleType)
    ]
    assert found == PUBLIC


def test_modules_are_attributes_at_once():
    # In a process of its own, since here they have been imported.
    code = """
import diffkit as dk
before = dk.registry._STATE.discovered, dk.testing.laws("schedule"), dk.training.TrainConfig, dk.V
from diffkit import *
assert V is dk.V and vlb is dk.vlb
assert "cosine" in available("schedule") and "digits" in available("data")
try:
    dk.register("schedule", "cosine")(V)
except dk.registry.DuplicatePartError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("schedule 'cosine' is registered twice"), done.stderr
    with pytest.raises(AttributeError, match="'diffkit' has no attribute 'nothing'"):
        dk.nothing  # noqa: B018


def our_classes(base=eqx.Module):
    for cls in base.__subclasses__():
        if cls.__module__.split(".")[0] in ("diffkit", "diffkit_vdm"):
            yield cls
        yield from our_classes(cls)


def test_classes_are_abstract_or_final():
    for name in dir(dk):
        getattr(dk, name)
    assert diffkit_vdm.LearnedMonotone in set(our_classes())
    for cls in set(our_classes()):
        missing = [
            *getattr(cls, "__abstractmethods__", ()),
            *getattr(cls, "__abstractvars__", ()),
            *getattr(cls, "__abstractclassvars__", ()),
        ]
        # A dataset is its four fields, which a subclass sets.
        missing = missing or cls is dk.data.AbstractDataset
        assert cls.__name__.lstrip("_").startswith("Abstract") == bool(missing), cls
        for base in cls.__mro__[1:]:
            if base.__module__.split(".")[0] not in ("diffkit", "diffkit_vdm"):
                continue
            assert base.__name__.lstrip("_").startswith("Abstract"), f"{cls} extends the final {base}"
            abstract = {*base.__abstractmethods__, *base.__abstractvars__}
            for name, value in vars(base).items():
                if callable(value) and not name.startswith("__") and name not in abstract:
                    assert name not in vars(cls), f"{cls} overrides {base.__name__}.{name}"


def test_importing_diffkit_loads_nothing_heavy():
    code = "import sys, diffkit; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"hydra", "hydra_zen", "grain", "orbax", "diffrax", "matplotlib", "sklearn", "PIL"}
    heavy |= {"optax", "rich", "tensorboardX", "diffkit_vdm"}
    assert not heavy & {name.split(".")[0] for name in loaded}
    ours = {name for name in loaded if name.split(".")[0] == "diffkit"}
    assert ours == {"diffkit", "diffkit.console", "diffkit.lazy", "diffkit.typechecking"}
