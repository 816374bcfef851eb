"""The cheap checks of one's own parts by `fit` and `sample`, and endpoints that no bound places."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffkit as dk
import diffkit_vdm
from diffkit.checks import check_loss, check_model
from diffkit.training.state import held_endpoints

KEY = jax.random.key(0)
SMALL = {"steps": 2, "batch_size": 8, "steps_per_dispatch": 1, "ema": 0.0}


class Scaled(dk.AbstractWeighting):
    factor: jax.Array

    def __call__(self, logsnr):
        return self.factor * jax.nn.sigmoid(-logsnr)


class Squares(dk.AbstractTimeSampler):
    """Squares of uniform times, whose density is a t^(a - 1) for a = 1/2."""

    density_has: float = 0.5
    importance_has: float = 0.5

    def __call__(self, key, batch_size):
        t = jax.random.uniform(key, (batch_size,)) ** 2
        return t, t ** (1 - self.importance_has) / self.importance_has

    def density(self, t):
        return self.density_has * t ** (self.density_has - 1)


class Parallel(dk.AbstractParameterization):
    def coefficients(self, level):
        return 2 * level.alpha, 2 * level.sigma


class Turns(dk.AbstractSchedule):
    """Falls from 13.3 to -5, but not all the way."""

    def __call__(self, t):
        return 13.3 - 18.3 * t + 4 * jnp.sin(2 * jnp.pi * t)

    def inverse(self, logsnr):
        return (13.3 - logsnr) / 18.3


class Keeps(dk.AbstractSampler):
    """Keeps a prediction as its state, which is a plain array at the start."""

    stochastic, order, calls = False, 1, 1

    def init(self, y):
        return jnp.zeros_like(y)

    def step(self, denoise, y, logsnr_t, logsnr_s, state, key):
        prediction = denoise(y, logsnr_t)
        return prediction.x, prediction.eps


class OnlyLatent(Keeps):
    def step(self, denoise, y, logsnr_t, logsnr_s, state, key):
        return denoise(y, logsnr_t).x


class Backwards(dk.AbstractGrid):
    def __call__(self, schedule, steps):
        return dk.UniformT()(schedule, steps)[::-1]


class Gain(dk.AbstractNetwork):
    """Ignores its condition."""

    def __call__(self, z, logsnr, condition=None, *, key=None):
        return z[: self.outputs]


def composition(**changes):
    parts = {"schedule": ("linear_logsnr", {"logsnr_max": 13.3}), "train": SMALL}
    parts["network"] = ("mlp", {"width": 8, "depth": 1})
    return dk.preset("vdm", **parts | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weighting": Scaled(jnp.array(-1.0))},
            "weighting Scaled must be .*at least 0.*got w = -",
        ),
        (
            {"weighting": Scaled(jnp.array(0.0))},
            "weighting Scaled must .*everywhere; got w = 0, logsnr =",
        ),
        (
            {"time_sampler": Squares(importance_has=1.0)},
            r"time_sampler Squares must .*importance 1 / density\(t\); got t = .*, importance = 1, dens",
        ),
        (
            {"time_sampler": Squares(1.0, 1.0)},
            "time_sampler Squares must draw t that follow its dens",
        ),
        (
            {"parameterization": Parallel()},
            "Parallel must have a determinant .*the determinant = 0, a = 2",
        ),
        (
            {"schedule": Turns()},
            "schedule Turns must fall strictly; got logsnr = 13.3, then = 13.3",
        ),
        ({"sampler": OnlyLatent()}, "OnlyLatent.step must return a pair"),
        (
            {"network": ("mlp", {"logsnr_range": (9.0, -9.0)})},
            r"=\(9.0, -9.0\), but .*=\(13.3, -5.0\)",
        ),
        (
            {"network": ("mlp", {"levels": 9})},
            "MLP was built with levels=9, but its model has levels=8",
        ),
    ],
)
def test_fit_refuses_a_wrong_part(changes, message, toy, tmp_path):
    with pytest.raises((ValueError, TypeError), match=message):
        dk.fit(composition(**changes), toy, directory=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_right_parts_pass(toy):
    class Falls(Turns):
        def __call__(self, t):
            return 13.3 - 18.3 * t

    parts = composition(parameterization=dk.V(), schedule=Falls())
    model = parts.model(toy, key=KEY)
    check_model(model)
    check_loss(model, Scaled(jnp.array(2.0)), Squares())


def test_a_model_by_hand():
    network = dk.networks.MLP((2,), width=8, logsnr_range=(9.0, -9.0), key=KEY)

    def model(part, schedule, network=network, levels=256):
        denoiser = dk.Denoiser(network, part, dk.VariancePreserving())
        return dk.DiffusionModel(denoiser, schedule, dk.DiscretizedDecoder(levels), (2,))

    with pytest.raises(ValueError, match=r"logsnr_range=\(9.0, -9.0\), but .*=\(13.3, -5.0\)"):
        model(dk.V(), dk.LinearLogSNR())
    with pytest.raises(ValueError, match="levels=256, but its model has levels=16"):
        model(dk.V(), dk.LinearLogSNR(9.0, -9.0), levels=16)
    right = model(dk.V(), dk.LinearLogSNR(9.0, -9.0))
    # Another schedule over the same range, and one whose endpoints training may have moved.
    model(dk.V(), dk.Cosine(9.0, -9.0))
    model(dk.V(), diffkit_vdm.LearnedLinear(8.0, -8.0))
    with pytest.warns(dk.equivalence.TransportWarning):
        dk.equivalence.transport(right, schedule=dk.LinearLogSNR(9.0, -5.0))
    wrong, data = model(Parallel(), right.schedule), dk.data.Swirl()
    with pytest.raises(ValueError, match="Parallel must have a determinant"):
        dk.fit(wrong, data, progress=False)
    with pytest.raises(ValueError, match="Parallel must have a determinant"):
        dk.sample(wrong, dk.samplers.DDIM(), 2, key=KEY)
    with pytest.raises(ValueError, match=r"network Gain must return the shape \(2,\) .*got \(1,\)"):
        model(dk.V(), right.schedule, Gain()).denoiser(jnp.ones(2), 0.0)

    # Values are not known within a compiled function.
    def drawn(model, **options):
        return dk.sample(model, dk.samplers.DDIM(), 2, key=KEY, steps=2, **options)

    assert eqx.filter_eval_shape(drawn, wrong).shape == (2, 2)
    with pytest.raises(ValueError, match=r"grid Backwards must rise strictly.*got logsnr = 9, then = 0"):
        drawn(right, grid=Backwards())
    with pytest.raises(ValueError, match="grid Backwards must rise strictly"):
        dk.invert(right, dk.samplers.DDIM(), jnp.zeros((2, 2)), steps=2, grid=Backwards())
    # A state that was a prediction is kept as an array.
    found = dk.sample(right, Keeps(), 2, key=KEY, steps=2)
    assert found.shape == (2, 2)


def test_a_network_must_read_its_conditions():
    data = dk.data.Digits(labels=True)
    with pytest.raises(ValueError, match="network Gain has condition_size=10 and ignores its arg"):
        dk.fit(composition(network=Gain(condition_size=10)), data, progress=False)


def test_a_run_without_a_checkpoint_does_not_block(toy, tmp_path):
    wrong = composition(weighting=Scaled(jnp.array(jnp.nan)))
    with pytest.raises(ValueError, match="weighting Scaled must be finite"):
        dk.fit(wrong, toy, directory=tmp_path, progress=False)
    with pytest.raises(FloatingPointError):
        dk.fit(wrong, toy, directory=tmp_path, progress=False, check=False)
    right = composition(weighting=Scaled(jnp.array(1.0)), train=SMALL | {"seed": 1})
    found = dk.fit(right, toy, directory=tmp_path, progress=False)
    assert [record["step"] for record in found.metrics] == [1, 2]
    assert dk.load_run(tmp_path, like=right).step == 2


def learned(**options):
    return diffkit_vdm.LearnedMonotone(6.0, -5.0, hidden=4, key=KEY, **options)


def test_which_arrays_move_the_endpoints():
    held = held_endpoints(learned(), dk.ELBO(), False)
    assert held is not None
    assert all(jax.tree.leaves(held.ends))
    assert not any(jax.tree.leaves(held.interior))
    # As in the reference, whose schedule is moved off its ends by every weight.
    assert all(jax.tree.leaves(held_endpoints(learned(normalize=False), dk.ELBO(), False)))
    assert held_endpoints(learned(), dk.ELBO(), None) is None
    assert held_endpoints(learned(), dk.Sigmoid(), True) is None
    assert held_endpoints(learned(learn_endpoints=False), dk.Sigmoid(), None) is None
    assert held_endpoints(dk.Cosine(), dk.Sigmoid(), None) is None


def test_endpoints_stay_without_a_bound(toy):
    network = dk.networks.MLP((2,), width=8, depth=1, levels=8, key=KEY)
    denoiser = dk.Denoiser(network, dk.V(), dk.VariancePreserving())
    model = dk.DiffusionModel(denoiser, learned(), dk.DiscretizedDecoder(8), (2,))
    # An optimiser of optax's own decays every array.
    options = {"weighting": dk.Sigmoid(), "optimiser": optax.adamw(0.1, weight_decay=0.5)}
    with pytest.warns(UserWarning, match="endpoints of schedule LearnedMonotone") as said:
        found = dk.fit(model, toy, dk.TrainConfig(**SMALL), progress=False, **options).model.schedule
    assert len(said) == 1
    before = model.schedule
    assert (found.ends.start, found.ends.gap) == (before.ends.start, before.ends.gap)
    assert not np.allclose(found.interior.log_height, before.interior.log_height)
