"""The examples run, at a size that takes seconds."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import diffkit as dk

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_swirl(tmp_path):
    small = ["--steps", "60", "--batch-size", "64", "--width", "16", "--depth", "1"]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "swirl.py"), *small],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Known from the points alone, by numpy: see also tests/test_data.py.
    assert "entropy of the points: 4.7353 bits/dim" in done.stdout
    last = re.search(r"training VLB: (\d+\.\d+) \+- \d+\.\d+ bits/dim", done.stdout)
    # No model beats the entropy, and 60 steps are enough to be better than no compression at all
    # plus the cost of the finest noise levels.
    assert last is not None
    assert 4.7353 < float(last[1]) < 20
    for name in ("curves.png", "schedule.png", "samples.png"):
        assert (tmp_path / "runs" / "swirl" / name).read_bytes().startswith(b"\x89PNG")


def _equivalences(cwd, *options):
    """The output of the example, and the table of losses and ratios of each network in it."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "equivalences.py"), *options],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(untrained|trained as \w+) +(\d[-+. \d]+)$", done.stdout, re.MULTILINE)
    table = {name: [float(n) for n in re.findall(r"[\d.]+", numbers)] for name, numbers in rows}
    assert (cwd / "runs/equivalences/equivalences.png").read_bytes().startswith(b"\x89PNG")
    return done.stdout, table


def _changes(output, what):
    """Two percentages: under the weighting of v_cosine, and under that of the bound."""
    found = re.search(rf"^{what}: (?:up to )?([-+.\d]+) % and ([-+.\d]+) %$", output, re.MULTILINE)
    assert found is not None
    return np.array([float(found[1]), float(found[2])])


@pytest.mark.slow
def test_equivalences(tmp_path):
    output, table = _equivalences(
        tmp_path, "--steps", "40", "--seeds", "1", "--width", "8", "--passes", "8"
    )
    assert "v_cosine and flow: generative model same, objective same" in output
    assert "v_cosine and bound: generative model same, objective different" in output
    assert len(table) == 3

    # From the definitions of the two schedules. In nu = logsnr / 2 their times are the angle arctan(e^-nu)
    # and the share of noise sigmoid(-nu), each divided by its range. Both have -dt / dlogsnr times the
    # factor of the target's error = e^-nu / 2 over that range, so that the losses are as the ranges.
    data = dk.get("data", "digits")()
    ends = np.array([13.3 + 2 * np.log(17 / 256), -5.0]) / 2
    angles, shares = np.arctan(np.exp(-ends)), 1 / (1 + np.exp(ends))
    ratio = np.ptp(angles) / np.ptp(shares)
    assert f"{ratio:.4f} to {ratio:.4f}" in output
    for _, _, _, found, error, _, _ in table.values():
        assert error < 0.01
        assert abs(found - ratio) < 4 * error + 1e-4
    # No such number for the other pair: it depends on the network.
    others = np.array([[row[5], row[6]] for row in table.values()])
    assert np.ptp(others[:, 0]) > 20 * others[:, 1].max()

    # Before training the network returns z as its v, and is off by (alpha + sigma) x + (sigma - alpha) eps.
    x = dk.DiscretizedDecoder(17).encode(data.test.gather(np.arange(297)))
    square = float((x**2).mean())
    middles = (np.arange(10_000) + 0.5) / 10_000

    def over_times(ends, rho, factor):
        rho = rho(ends[0] + (ends[1] - ends[0]) * middles)
        alpha, sigma = 1 / np.hypot(1, rho), rho / np.hypot(1, rho)
        error = (alpha + sigma) ** 2 * square + (sigma - alpha) ** 2
        return (factor(alpha, sigma) * error).mean()

    expected = (
        over_times(angles, np.tan, lambda alpha, sigma: 1.0),
        over_times(shares, lambda tau: tau / (1 - tau), lambda alpha, sigma: (alpha + sigma) ** 2),
        over_times(ends, lambda nu: np.exp(-nu), lambda alpha, sigma: alpha**2),
    )
    np.testing.assert_allclose(table["untrained"][:3], expected, rtol=0.01)


@pytest.mark.slow
def test_equivalences_after_training(tmp_path):
    output, table = _equivalences(tmp_path)
    for _, _, _, ratio, error, _, _ in table.values():
        assert abs(ratio - 1.6236) < 4 * error + 1e-4
    same = _changes(output, "one objective, flow against v_cosine")
    other = _changes(output, "another, bound against v_cosine")
    seeds = _changes(output, "one preset, between its seeds")
    # Within 2 per cent; the other objective is worse under the weighting of v_cosine, better under its own.
    assert np.all(np.abs(same) < 2)
    assert np.all(other * np.array([1, -1]) > np.array([3, 8]))
    assert np.all(np.abs(other) > 3 * np.abs(same))
    assert np.all(np.abs(other) > 3 * seeds)
