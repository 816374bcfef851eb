"""The laws of diffkit, put to the parts of this plugin, and tests of what is its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffkit_custom.optimisers import Adamax
from diffkit_custom.presets import CUSTOM
from diffkit_custom.samplers import Ralston
from diffkit_custom.schedules import Bent
from diffkit_custom.weightings import window

import diffkit as dk
from diffkit import testing


class TestBent(testing.ScheduleLaws):
    part = Bent


class TestBentTheOtherWay(testing.ScheduleLaws):
    part = functools.partial(Bent, bend=-0.9)


class TestWindow(testing.WeightingLaws):
    part = window


class TestRalston(testing.SamplerLaws):
    part = Ralston()


class TestAdamax(testing.OptimiserLaws):
    part = Adamax


class TestCustom(testing.PresetLaws):
    part = CUSTOM


def test_bend_moves_the_middle():
    # s(1/2) = 1/2 + bend / 4, which is 0.7 for a bend of 0.8.
    np.testing.assert_allclose(Bent(10.0, -10.0, bend=0.0)(0.5), 0.0, atol=1e-6)
    np.testing.assert_allclose(Bent(10.0, -10.0, bend=0.8)(0.5), -4.0, rtol=1e-6)


def test_bend_out_of_range():
    with pytest.raises(ValueError, match="bend must be between -1 and 1, got 1"):
        Bent(bend=1.0)


def test_window_in_closed_form():
    # The squared error of v is 1 + exp(-logsnr) times that of eps. Over a straight line of length 20 the
    # weighting is 2 / 20 times that factor times the bell.
    logsnr = np.array([-6.0, 0.0, 1.0, 9.0])
    weighting = window(
        centre=1.0,
        width=2.0,
        schedule=Bent(10.0, -10.0, bend=0.0),
        process=dk.VariancePreserving(),
        parameterization=dk.V(),
    )
    expected = 0.1 * (1 + np.exp(-logsnr)) * np.exp(-0.5 * ((logsnr - 1) / 2) ** 2)
    np.testing.assert_allclose(jax.vmap(weighting)(logsnr), expected, rtol=1e-5)


def test_window_out_of_range():
    with pytest.raises(ValueError, match="width must be a positive number, got 0"):
        window(
            width=0.0,
            schedule=Bent(),
            process=dk.VariancePreserving(),
            parameterization=dk.V(),
        )


def test_ralston_is_ralstons_tableau():
    # One step of dy / drho = -2 y / rho, whose solution is y = 1 / rho^2, from rho = 2 to rho = 1.
    def denoise(y, logsnr):
        level = dk.VarianceExploding().at(logsnr)
        return dk.Prediction(y, -2 * y / level.rho, level)

    ends = jnp.asarray([-2 * np.log(2.0), 0.0])
    y, _ = Ralston().step(denoise, jnp.ones(1), *ends, None, None)
    # By hand: k1 = -1, the second stage at rho = 4/3 with y = 5/3, k2 = -5/2; y + (1 + 15/2) / 4.
    np.testing.assert_allclose(y, 1 + (1 + 7.5) / 4, rtol=1e-6)
