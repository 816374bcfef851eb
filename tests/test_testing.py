"""The kit of laws finds what it must: parts that are wrong on purpose, one for each law."""

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp
import pytest
from wrong_parts import WRONG, Crooked, Overflowing, Squares, Unsound, preset

import diffkit as dk
from diffkit import registry, testing
from diffkit.testing import LawError, NotApplicable

EXAMPLE = Path(__file__).parents[1] / "examples" / "custom_plugin"


CASES = [
    pytest.param(kind, law, part, words, id=f"{kind}-{law}-{title}")
    for (kind, law), entries in WRONG.items()
    for title, part, words in entries
]


@pytest.mark.parametrize(("kind", "law", "part", "words"), CASES)
@pytest.mark.usefixtures("own_registry")
def test_wrong_part_is_caught(kind, law, part, words):
    dk.register("weighting", "overflowing")(Overflowing)
    made = part() if kind in ("preset", "data") else part
    found = next(one for one in testing.laws(kind) if one.name == law)
    with pytest.raises(LawError, match=f"(?s){words}") as broken:
        found(made, name="under_test")
    # It names the part, the law, the input and the numbers.
    error = broken.value
    assert (error.part, error.law) == (f"{kind} 'under_test'", law)
    assert str(error).startswith(f"{kind} 'under_test' breaks the law {law!r}: {found.sentence}")
    assert f"input:   {error.given}\n" in str(error)
    assert str(error).endswith(f"numbers: {error.numbers}")


def test_every_law_has_a_wrong_part():
    # The same two functions for every kind.
    common = {"interface", "options"}
    known = {(k, one.name) for k in registry.KINDS for one in testing.laws(k)}
    assert set(WRONG) <= known
    assert {(k, name) for k, name in known if name not in common} <= set(WRONG)
    for kind in registry.KINDS:
        assert testing.laws(kind)[0].name == "interface"


def test_only_the_law_that_is_broken_fails():
    # A slip in the inverse is no slip anywhere else.
    results = list(testing.check_part("schedule", Crooked(slip="inverse"), name="slipped"))
    assert [r.law for r in results] == [one.name for one in testing.laws("schedule")]
    assert {r.law for r in results if r.outcome == "failed"} == {"inverse_inverts"}
    (broken,) = (r for r in results if r.outcome == "failed")
    assert broken.error is not None
    assert broken.error.part == "schedule 'slipped'"


def test_a_part_that_cannot_be_made_breaks_one_law():
    def broken(levels: int):
        raise ValueError(f"no schedule for {levels} levels")

    first, *rest = testing.check_part("schedule", broken)
    assert first.outcome == "failed"
    assert "no schedule for 256 levels" in str(first.error)
    assert {r.outcome for r in rest} == {"skipped"}


def test_what_cannot_be_checked_is_skipped_with_the_reason():
    results = list(testing.check_part("data", dk.data.ArrayData))
    assert {r.reason for r in results if r.law != "options"} == {
        "needs path: there is no default to check it with"
    }
    (independent,) = (one for one in testing.laws("time_sampler") if one.name == "covers_evenly")
    with pytest.raises(NotApplicable, match="its times are independent"):
        independent(Squares(even=False))
    independent(Squares())
    with pytest.raises(ValueError, match=r"kind must be one of schedule, .*got 'schedul'"):
        testing.laws("schedul")


# The test classes: these run.


class TestLinearLogSNR(testing.ScheduleLaws):
    part = dk.LinearLogSNR


class TestCosineForFewLevels(testing.ScheduleLaws):
    part = dk.Cosine
    context: ClassVar = {"levels": 4}


class TestMinSNR(testing.WeightingLaws):
    part = dk.weightings.min_snr  # a function, which must not become a method


class TestArrayData(testing.DataLaws):
    part = Unsound("none")
    test_conditions_are_vectors = None  # the only law that it breaks


def test_classes_have_a_method_for_every_law():
    classes = {
        "schedule": testing.ScheduleLaws,
        "process": testing.ProcessLaws,
        "parameterization": testing.ParameterizationLaws,
        "weighting": testing.WeightingLaws,
        "time_sampler": testing.TimeSamplerLaws,
        "sampler": testing.SamplerLaws,
        "grid": testing.GridLaws,
        "decoder": testing.DecoderLaws,
        "network": testing.NetworkLaws,
        "optimiser": testing.OptimiserLaws,
        "data": testing.DataLaws,
        "preset": testing.PresetLaws,
    }
    assert set(classes) == set(registry.KINDS)
    for kind, cls in classes.items():
        methods = {name for name in dir(cls) if name.startswith("test_")}
        assert methods == {f"test_{one.name}" for one in testing.laws(kind)}


def test_classes_fail_skip_and_ask_for_the_part():
    class Wrong(testing.ScheduleLaws):
        part = Crooked(slip="wave")

    class WithoutPart(testing.ScheduleLaws):
        pass

    class Closed(testing.WeightingLaws):
        part = dk.ELBO()

    with pytest.raises(LawError, match="schedule 'Crooked' breaks the law 'strictly_decreasing'"):
        Wrong().test_strictly_decreasing()
    with pytest.raises(TypeError, match=r"WithoutPart must name the part .* part = MyPart\(\)"):
        WithoutPart().test_finite()
    with pytest.raises(pytest.skip.Exception, match="states no loss"):
        Closed().test_is_what_its_loss_implies()
    with pytest.raises(ValueError, match=r"context has entries .*got 'colour'"):
        testing.check_part("schedule", dk.Cosine, context={"colour": 1}).__next__()


def test_importing_the_kit_loads_neither_pytest_nor_the_training_stack():
    code = "import sys, diffkit.testing; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"pytest", "hydra", "hydra_zen", "optax", "grain", "orbax", "rich", "matplotlib"}
    assert not heavy & {name.split(".")[0] for name in loaded}


# Right presets whose weighting is what their loss says, however it is said.


@pytest.mark.parametrize(
    "right",
    [
        preset(),  # the VLB
        preset(weighting="simple", schedule="cosine", parameterization="v", loss=dk.Loss()),
        # The squared error of x, by hand, is exp(-logsnr) times that of eps.
        preset(
            weighting="simple",
            loss=dk.Loss(parameterization="x", factor=lambda logsnr: 7 * jnp.exp(logsnr)),
        ),
        # The VLB as a loss: for a straight line its weight is the same at all times.
        preset(weighting="elbo", loss=dk.Loss()),
    ],
    ids=["elbo", "cosine v", "x with factor", "line"],
)
def test_weighting_of_right_presets(right):
    (found,) = (one for one in testing.laws("preset") if one.name == "weighting_is_its_loss")
    found(right)


# `simple` and `min_snr` are derived from a loss. But it is made of the same parts, and says nothing of the
# one that the preset means.
@pytest.mark.parametrize("weighting", ["sigmoid", "simple", ("min_snr", {"gamma": 0.01})])
def test_a_preset_that_states_no_loss_is_not_judged(weighting):
    (found,) = (one for one in testing.laws("preset") if one.name == "weighting_is_its_loss")
    with pytest.raises(NotApplicable, match="states no loss: give the preset loss="):
        found(preset(weighting=weighting))
