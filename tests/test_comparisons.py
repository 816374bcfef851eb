"""Comparisons of models and objectives: verdicts, what differs, and the figure."""

import dataclasses
import math

import known
import numpy as np
import pytest

import diffkit as dk
from diffkit.equivalence import (
    common_range,
    compare,
    composition,
    save_comparison,
)

SAME, WITHIN, DIFFERENT = "same", "same within the common range", "different"
SCHEDULE = {"logsnr_max": 13.3, "logsnr_min": -10.0}
V_COSINE = dk.Preset(
    schedule=("cosine", SCHEDULE),
    parameterization="v",
    weighting="simple",
    sampler="ddim",
)


def steps(number, schedule="linear_logsnr"):
    return dk.Preset(schedule=(schedule, SCHEDULE), train={"loss_steps": number})


def differing(comparison):
    return {row.what for row in comparison.rows if not row.same}


@pytest.mark.parametrize(
    ("a", "b", "model", "objective", "differ"),
    [
        # Both are the VLB; the learned schedules differ between their endpoints.
        ("vdm", "vdm_cifar10", SAME, SAME, {"schedule"}),
        # w = exp(-logsnr / 2) for both (Kingma and Gao 2023): one model, one loss, all else differs.
        (
            "flow_matching",
            V_COSINE,
            SAME,
            SAME,
            {"schedule", "process", "parameterization", "time_sampler", "sampler"},
        ),
        # Other times in the loss.
        (
            "flow_matching",
            "rectified_flow",
            SAME,
            DIFFERENT,
            {"weighting", "its loss is", "time_sampler", "sampler"},
        ),
        # The plain error of eps over uniform times on a linear logsnr weighs as the VLB does.
        (
            "vdm",
            "ve_sde",
            WITHIN,
            WITHIN,
            {"logsnr", "schedule", "process", "time_sampler", "sampler"},
        ),
        # For the VP process and the sub-VP process dlogsnr/dt differs, and so the weighting.
        (
            "vp_sde",
            "subvp_sde",
            WITHIN,
            DIFFERENT,
            {"logsnr", "schedule", "process", "weighting", "its loss is"},
        ),
        # The target is eps for both, but one network predicts variances as well.
        (
            "ddpm",
            "iddpm",
            DIFFERENT,
            DIFFERENT,
            {"logsnr", "variances", "schedule", "weighting", "its loss is", "sampler", "grid"},
        ),
        # Another reading of the last latent.
        (V_COSINE, dataclasses.replace(V_COSINE, decoder="gaussian"), DIFFERENT, SAME, {"decoder"}),
        (V_COSINE, dataclasses.replace(V_COSINE, optimiser="lion"), SAME, SAME, {"optimiser"}),
        # The network sees the latent in another scale.
        (
            V_COSINE,
            dataclasses.replace(V_COSINE, data_std=0.5),
            SAME,
            SAME,
            {"input for data of std"},
        ),
        # No noise level in common.
        (
            dk.Preset(schedule=("linear_logsnr", {"logsnr_max": 12.0, "logsnr_min": 1.0})),
            dk.Preset(schedule=("linear_logsnr", {"logsnr_max": 0.0, "logsnr_min": -9.0})),
            DIFFERENT,
            DIFFERENT,
            {"logsnr", "schedule", "weighting", "its loss is"},
        ),
        # The number of steps is part of a loss in discrete time, and so are the levels of its steps.
        (steps(100), steps(None), SAME, DIFFERENT, {"steps of the loss"}),
        (steps(100), steps(200), SAME, DIFFERENT, {"steps of the loss"}),
        (steps(100), steps(100), SAME, SAME, set()),
        (
            steps(100),
            steps(100, "cosine"),
            SAME,
            DIFFERENT,
            {"schedule", "steps of the loss"},
        ),
        (steps(None), steps(None, "cosine"), SAME, SAME, {"schedule"}),
    ],
)
def test_verdicts(a, b, model, objective, differ):
    comparison, mirrored = compare(a, b), compare(b, a)
    assert (comparison.model, comparison.objective) == (model, objective)
    assert (comparison.same_model, comparison.same_objective) == (model == SAME, objective == SAME)
    assert differing(comparison) == differ
    # The table, and a reason for whatever is not the same.
    text = comparison.markdown()
    for row in comparison.rows:
        assert f"| {row.what} | {row.a} | {row.b} | {'same' if row.same else 'differs'} |" in text
    assert (not comparison.reasons) == ((model, objective) == (SAME, SAME))
    for reason in comparison.reasons:
        assert f"* {reason}\n" in text
    # Seen from the other side.
    assert (mirrored.model, mirrored.objective) == (model, objective)
    assert differing(mirrored) == differ
    np.testing.assert_allclose(mirrored.log_ratio, -comparison.log_ratio, atol=1e-9)
    least, largest = comparison.ratio
    np.testing.assert_allclose(mirrored.ratio, (1 / largest, 1 / least), rtol=1e-9)


def test_ratio_is_that_of_the_closed_forms():
    # 1 and exp(-logsnr / 2), over the range that both have, about its geometric mean.
    comparison = compare("vdm", "flow_matching")
    u = comparison.logsnr
    assert (u[0], u[-1]) == pytest.approx((-5.0, 13.3), abs=0.03)
    np.testing.assert_allclose(comparison.log_ratio, (u - u.mean()) / 2, atol=2e-3)
    assert comparison.ratio == pytest.approx((np.exp(-18.3 / 4), np.exp(18.3 / 4)), rel=0.01)
    # On the cosine schedule sech(logsnr / 2) for the error of eps, exp(-logsnr / 2) for that of v.
    eps, v = (
        dk.Preset(schedule=("cosine", SCHEDULE), parameterization=target, weighting="simple")
        for target in ("epsilon", "v")
    )
    comparison = compare(eps, v)
    expected = comparison.logsnr / 2 - np.log(np.cosh(comparison.logsnr / 2))
    np.testing.assert_allclose(comparison.log_ratio, expected - expected.mean(), atol=2e-3)


def test_verdicts_of_the_presets():
    # VE: uniform times on a linear logsnr, and the plain error of eps, w = 2 / range.
    ve = composition("ve_sde")
    assert ve.verdict.kind == "vlb"
    assert ve.verdict.scale == pytest.approx(1 / np.log(5000), rel=1e-5)
    assert composition("vdm").verdict == dk.equivalence.Verdict("vlb", 1.0, None)
    assert composition("flow_matching").verdict.kind == "monotone"
    # L_simple under the schedule of the VP SDE: w = 2 / -dlogsnr/dt, which goes to zero with the SNR.
    for name in ("ddpm", "vp_sde", "subvp_sde", "edm", "simple_diffusion", "rectified_flow"):
        assert composition(name).verdict.kind == "neither", name


def test_a_weighting_that_vanishes():
    one = composition("vdm")
    low, high, other = (
        dataclasses.replace(one, weighting=known.Cut(*ends)) for ends in ((-4, 1), (2, 9), (0, 9))
    )
    apart = compare(low, high)
    assert apart.objective == DIFFERENT
    assert all(map(math.isnan, apart.ratio))
    assert "There is no noise level that both losses weigh." in apart.reasons
    # Equal where both weigh something, but not everywhere.
    assert compare(low, other).objective == DIFFERENT
    assert compare(low, other).ratio == (1.0, 1.0)
    assert compare(low, low).objective == SAME


def test_levels_are_part_of_the_model():
    few, many = (composition("flow_matching", levels=levels) for levels in (17, 256))
    # 13.3 + 2 log(levels / 256).
    assert few.range == pytest.approx((13.3 + 2 * np.log(17 / 256), -10.0), rel=1e-6)
    comparison = compare(few, many)
    assert comparison.model == DIFFERENT
    assert {"logsnr", "decoder"} <= differing(comparison)
    # But not of the objective: exp(-logsnr / 2) either way.
    assert comparison.objective == WITHIN
    assert compare("flow_matching", few, levels=17).model == SAME


def test_common_range():
    schedules = [dk.LinearLogSNR(9.0, -5.0), dk.Cosine(13.0, -3.0), dk.LinearLogSNR(10.0, -9.0)]
    assert common_range(*schedules) == pytest.approx((9.0, -3.0), abs=1e-5)
    with pytest.raises(ValueError, match=r"a range of logsnr in common, .*\(-6.0, -9.0\)"):
        common_range(*schedules, dk.LinearLogSNR(-6.0, -9.0))


def test_labels_have_the_options_that_are_not_defaults():
    labels = composition("rectified_flow").labels
    assert labels["schedule"] == "straight_line(logsnr_min=-10)"
    assert labels["weighting"] == "simple(times=logit_normal)"
    assert labels["process"] == "straight"
    assert labels["time_sampler"] == "logit_normal"
    assert composition(dk.get("preset", "edm")).name == "edm"
    assert composition(V_COSINE).name == "preset"


@pytest.mark.parametrize(
    ("a", "error", "message"),
    [
        ("vdn", LookupError, "there is no preset 'vdn'. Did you mean 'vdm'.*flow_matching"),
        (3, TypeError, "what is compared must be the name of a preset, .* got int"),
        ({"data": {}}, ValueError, "configuration: it must be a run's configuration and has no schedule"),
    ],
)
def test_what_cannot_be_compared(a, error, message):
    with pytest.raises(error, match=message):
        compare("vdm", a)
    with pytest.raises(error, match=message):
        compare(a, "vdm")


def test_figure(tmp_path):
    path = tmp_path / "deep" / "comparison.png"
    save_comparison(compare("vdm", "edm"), path)
    from matplotlib.image import imread

    picture = imread(path)
    assert picture.shape[:2] == (900, 1320)
    # Each of the four plots has the colours of both models.
    for half in np.split(picture[..., :3], 2):
        for plot in np.split(half, 2, axis=1):
            for colour in ((0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)):
                near = np.abs(plot - np.array(colour) / 255).max(axis=-1) < 0.05
                assert near.sum() > 100
