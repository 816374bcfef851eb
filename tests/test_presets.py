"""Presets: parts by name, with options, as instances; and what does not go together."""

import functools

import jax
import numpy as np
import pytest

import diffkit as dk
from diffkit.configs import spec_of
from diffkit.presets import complete
from diffkit.registry import UnknownPartError


def test_parts_by_name_with_options_and_as_instances(toy_model):
    model = toy_model(
        schedule=("cosine", {"logsnr_max": 9.0}),
        process="variance_exploding",
        parameterization=dk.V(),
    )
    assert isinstance(model.schedule, dk.Cosine)
    assert model.schedule.logsnr_max == 9.0
    assert isinstance(model.process, dk.VarianceExploding)
    assert isinstance(model.denoiser.parameterization, dk.V)
    assert model.decoder.levels == 8
    # The network was told the endpoints of the schedule that was chosen.
    assert model.denoiser.network.logsnr_range == pytest.approx((9.0, -5.0), abs=1e-5)


def test_first_endpoint_follows_the_levels(toy_model):
    # VDM's 13.3 is for 256 levels: six standard deviations between two of them. For 8 as well.
    for schedule in ("linear_logsnr", "cosine", "learned_linear"):
        maximum, _ = toy_model(schedule=schedule).schedule.endpoints
        distance, rho = 2 / 8, float(jax.numpy.exp(-maximum / 2))
        reference = (2 / 256) / float(jax.numpy.exp(-13.3 / 2))
        assert distance / rho == pytest.approx(reference, rel=1e-4)
    assert dk.LinearLogSNR().logsnr_max == 13.3


def test_a_decoder_gets_the_statistics_of_the_data():
    data = dk.data.ArrayData(np.arange(400.0).reshape(200, 2))
    found = spec_of({"data": {}}, data)
    preset = dk.Preset(decoder=dk.GaussianDecoder, network=("mlp", {"width": 4}))
    decoder = preset.model(found, key=jax.random.key(0)).decoder
    train = data.train.gather(np.arange(len(data.train)))
    assert (decoder.mean, decoder.std) == pytest.approx((train.mean(), train.std()), rel=1e-5)


def test_what_does_not_go_together_is_refused(toy_model):
    with pytest.raises(TypeError, match=r"process must be a diffkit.AbstractProcess, got V"):
        toy_model(process=dk.V())
    with pytest.raises(ValueError, match="decoder GaussianDecoder is for data with levels=None"):
        toy_model(decoder="gaussian")
    with pytest.raises(ValueError, match="network 'mlp' has no option 'widht'"):
        toy_model(network=("mlp", {"widht": 3}))
    with pytest.raises(UnknownPartError, match="Did you mean 'cosine'"):
        toy_model(schedule="cosin")
    with pytest.raises(UnknownPartError, match="there is no preset 'vdn'"):
        dk.preset("vdn").model(shape=(2,), key=jax.random.key(0))


def test_a_target_that_says_nothing_at_an_end_is_refused(toy_model):
    low = ("linear_logsnr", {"logsnr_min": -40.0})
    with pytest.raises(ValueError, match="Epsilon does not determine x at the noise end"):
        toy_model(schedule=low, parameterization="epsilon")
    high = ("linear_logsnr", {"logsnr_max": 40.0})
    with pytest.raises(ValueError, match="X does not determine eps at the data end"):
        toy_model(schedule=high, parameterization="x")
    for schedule in (low, high):
        toy_model(schedule=schedule, parameterization="v")

    class Zero(dk.AbstractSchedule):
        def __call__(self, t):
            return -2 * jax.numpy.log(t / (1 - t))

        def inverse(self, logsnr):
            return jax.nn.sigmoid(-logsnr / 2)

    with pytest.raises(ValueError, match="zero terminal SNR"):
        toy_model(schedule=Zero())


def test_parts_for_a_model(toy_model):
    model = toy_model(schedule="cosine")
    weighting = dk.part("weighting", "simple", model=model)
    assert weighting.schedule == model.schedule
    assert weighting.parameterization == dk.Epsilon()
    # Of a model with guidance, too.
    assert dk.part("weighting", "simple", model=dk.guide(model, 2.0)).schedule == model.schedule
    sampler = dk.part("sampler", ("ddim", {"eta": 0.5}), model=model)
    assert sampler == dk.samplers.DDIM(0.5)
    assert dk.part("grid", dk.UniformT(), model=model) == dk.UniformT()
    with pytest.raises(TypeError, match=r"grid must be a diffkit.AbstractGrid, got DDIM"):
        dk.part("grid", sampler, model=model)
    with pytest.raises(ValueError, match="kind must be one of weighting, time_sampler"):
        dk.part("network", "mlp", model=model)


def test_complete_fills_in_what_the_signature_names():
    def part(shape, size=3, *, key=None):
        return shape, size, key

    context = {"shape": (1,), "key": 5, "levels": 7}
    assert complete(part, context) == ((1,), 3, 5)
    # What was chosen wins over the context.
    assert complete(functools.partial(part, size=4, key=6), context) == ((1,), 4, 6)
    instance = dk.Epsilon()
    assert complete(instance, context) is instance


@pytest.mark.parametrize("name", dk.available("preset"))
def test_preset_names_registered_parts_and_settings(name):
    preset = dk.get("preset", name)
    for kind in ("schedule", "process", "parameterization", "weighting", "time_sampler", "sampler"):
        chosen, _ = preset.choice(kind)
        assert chosen in dk.available(kind)
    dk.TrainConfig(**preset.train)
