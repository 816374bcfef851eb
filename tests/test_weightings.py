"""Laws of weightings, for every registered one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkit as dk
from diffkit.presets import complete


@pytest.mark.parametrize("name", dk.available("weighting"))
def test_finite_and_not_negative(name):
    weighting = complete(dk.get("weighting", name), {})
    w = jax.vmap(weighting)(jnp.linspace(-20.0, 20.0, 401))
    assert np.all(np.isfinite(w))
    assert np.all(w >= 0)


def test_elbo_is_one():
    np.testing.assert_array_equal(jax.vmap(dk.ELBO())(jnp.linspace(-20.0, 20.0, 9)), 1.0)
