"""Measured rates, and what other codes need."""

import io
import lzma
import math

import numpy as np
import pytest
from PIL import Image

import diffkit as dk
from diffkit_bitsback import ChainStatistics, rate


def images(count, channels=1, levels=256, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, levels, size=(count, channels, 6, 5), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_sizes_are_those_of_files_that_hold_the_images(channels, monkeypatch):
    files = []
    save = Image.Image.save

    def keep(self, file, **options):
        save(self, file, **options)
        files.append((options["format"], file.getvalue()))

    monkeypatch.setattr(Image.Image, "save", keep)
    stored = images(7, channels, levels=17)
    codes = rate.other_codes(stored, 17)
    monkeypatch.undo()
    for name, code in (("PNG", "PNG"), ("WebP lossless", "WEBP")):
        opened = [np.asarray(Image.open(io.BytesIO(data))) for f, data in files if f == code]
        sizes = [len(data) for f, data in files if f == code]
        assert codes[name] == pytest.approx(
            (8 * sum(sizes[:7]) / stored.size, 8 * sum(sizes[7:]) / stored.size)
        )
        # WebP knows no grey; its three channels are the same.
        grey = [pixels[..., 0] if channels == 1 and pixels.ndim == 3 else pixels for pixels in opened]
        for pixels, image in zip(grey[:7], stored, strict=False):
            expected = image[0] if channels == 1 else image.transpose(1, 2, 0)
            np.testing.assert_array_equal(pixels, expected)
        # Every pixel is on the sheets, and nothing else is.
        on_sheets = np.concatenate([pixels.ravel() for pixels in grey[7:]])
        np.testing.assert_array_equal(np.sort(on_sheets), np.sort(stored.ravel()))
    sizes = [len(lzma.compress(image.tobytes())) for image in stored]
    assert codes["LZMA"][0] == pytest.approx(8 * sum(sizes) / stored.size)
    assert codes["LZMA"][1] == pytest.approx(8 * len(lzma.compress(stored.tobytes())) / stored.size)


def test_sheets_hold_all_images_side_by_side():
    stored = images(11)
    sheets = rate._sheets(stored)
    assert [sheet.shape for sheet in sheets] == [(1, 18, 15), (1, 12, 5)]
    np.testing.assert_array_equal(sheets[0][:, 6:12, 10:15], stored[5])
    np.testing.assert_array_equal(sheets[1][:, 6:12], stored[10])


def test_what_is_no_image_has_the_general_code_only():
    assert set(rate.other_codes(images(3).reshape(3, -1), 256)) == {"LZMA"}
    assert set(rate.other_codes(images(3, channels=2), 256)) == {"LZMA"}
    assert set(rate.other_codes(images(3).astype(np.uint16), 300)) == {"LZMA"}


def two_points():
    """The exact model of two images, and 600 draws of them: each has one bit."""
    decoder = dk.DiscretizedDecoder(levels=4)
    points = np.random.default_rng(1).integers(0, 4, size=(2, 1, 2, 4), dtype=np.uint8)
    denoiser = dk.analytic.empirical(np.asarray(decoder.encode(points)))
    model = dk.DiffusionModel(denoiser, dk.LinearLogSNR(), decoder, (1, 2, 4))
    return model, points[np.random.default_rng(2).integers(0, 2, size=600)]


def test_rates_of_a_model(capsys):
    model, stored = two_points()
    told = []
    (found,) = rate.rates(model, stored, [40], batch_size=200, progress=told.append)
    statistics = found.statistics
    assert told == sorted(told)
    assert told[-1] == statistics.images == 600
    # The gap is the overhead, and a difference that is as likely as the bounds of the images say.
    gap, error = found.gap
    assert gap == pytest.approx(statistics.net_bits_per_dim - found.bound)
    drawn = statistics.bound_bits_per_dim - found.bound
    assert 0 < error < 0.02
    assert abs(drawn) < 5 * error
    assert gap == pytest.approx(drawn + statistics.overhead_bits_per_dim, abs=64 / 4800)
    # The bound is above the entropy, and the code as long as the bound.
    assert 1 / 8 < found.bound < 0.25
    assert statistics.net_bits_per_dim == pytest.approx(found.bound, abs=0.03)
    assert statistics.net_bits_per_dim > 1 / 8 - 0.005
    codes = rate.other_codes(stored, 4)
    rate.show([found], codes)
    shown = capsys.readouterr().out
    for text in (
        f"{found.bound:.4f}",
        f"{statistics.net_bits_per_dim:.4f}",
        f"{gap:.4f} +- {error:.4f}",
        f"{statistics.total_bits_per_dim:.4f}",
        f"{codes['PNG'][0]:.4f}",
        "600 images",
    ):
        assert text in shown


def test_the_error_of_the_gap_is_that_of_the_differences():
    # Two images of four dimensions, whose bounds differ by 0.5 and by 0.1 bits per dimension.
    statistics = ChainStatistics(2, 8, 64, 32, 31.5, np.array([4.0, 8.0]), 1.0, 1.0)
    each = np.array([0.5, 1.9])
    term, nats = (0.0, 0.0), 4 * math.log(2)
    total = (1.2 * nats, 0.7 * nats)
    evaluation = dk.training.Evaluation(term, term, term, total, 2, 1, 10, "pilot", nats * each, 4)
    gap, error = rate.Rate(10, statistics, evaluation).gap
    assert gap == pytest.approx(32 / 8 - 1.2)
    assert error == pytest.approx(0.2)  # (0.5 - 0.1) / 2


@pytest.mark.slow
def test_more_steps_are_a_shorter_code_and_other_grids_have_no_bound():
    model, stored = two_points()
    few, many = rate.rates(model, stored, [10, 100], batch_size=200)
    assert many.bound < few.bound - 0.02
    assert many.statistics.net_bits < few.statistics.net_bits
    for each in (few, many):
        # Rare large errors: the draws of the bound tell how far it may be off.
        gap, error = each.gap
        assert error < 0.04
        assert abs(gap) < 4 * error + 64 / 4800
    (even,) = rate.rates(model, stored[:5], [3], grid=dk.UniformLogSNR(), batch_size=200)
    assert np.isnan(even.bound)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="images must be at least one"):
        rate.rates(two_points()[0], images(0), [10])
