"""Folders of images."""

import os
from pathlib import Path

import numpy as np
import pytest
from sources import everything, random_pixels, save

from diffkit.data import ImageFolder, ImageFolderSource


def test_image_folder_takes_every_image_once(tmp_path):
    pixels = [random_pixels(4, 5, 3, seed=i) for i in range(10)]
    for i, image in enumerate(pixels):
        save(tmp_path, f"{'ab'[i % 2]}/{i}.{'png' if i < 5 else 'BMP'}", image)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._0.png").write_bytes(b"not an image either, and hidden")
    data = ImageFolder(tmp_path, test_fraction=0.3)
    assert (data.levels, data.shape) == (256, (3, 4, 5))
    found = np.concatenate([everything(data.train), everything(data.test)])
    assert (len(found), found.dtype) == (10, np.uint8)
    assert {image.tobytes() for image in found} == {image.transpose(2, 0, 1).tobytes() for image in pixels}
    again, other = (ImageFolder(tmp_path, test_fraction=0.3, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(everything(again.test), everything(data.test))
    assert not np.array_equal(everything(other.test), everything(data.test))
    old = ImageFolder(tmp_path, test_fraction=0.3, split="positions")  # of older versions
    assert (len(old.train), len(old.test)) == (7, 3)


def test_image_folder_keeps_its_own_split(tmp_path):
    pixels = [random_pixels(4, 4, seed=i) for i in range(3)]
    save(tmp_path, "train/z.png", pixels[0])
    save(tmp_path, "train/deep/er.png", pixels[1])
    save(tmp_path, "test/0.png", pixels[2])
    data = ImageFolder(tmp_path, channels=1)
    np.testing.assert_array_equal(everything(data.train)[:, 0], [pixels[1], pixels[0]])
    np.testing.assert_array_equal(everything(data.test)[:, 0], [pixels[2]])
    save(tmp_path, "test/0.png", pixels[2][1:])
    with pytest.raises(ValueError, match=r"0\.png' has 3 x 4; give size"):
        ImageFolder(tmp_path, channels=1)
    os.remove(tmp_path / "test/0.png")
    with pytest.raises(ValueError, match=r"test' must hold image files .* got none"):
        ImageFolder(tmp_path)
    os.rmdir(tmp_path / "test")
    with pytest.raises(ValueError, match=r"both subfolders .* got only 'train'"):
        ImageFolder(tmp_path)


def test_images_are_cropped_to_the_centre_and_resized(tmp_path):
    # A white margin left and right falls away; of the square, the halves are 40 and 200.
    wide = np.full((32, 56), 255, np.uint8)
    wide[:16, 12:44], wide[16:, 12:44] = 40, 200
    small = random_pixels(8, 8)
    files = [save(tmp_path, "wide.png", wide), save(tmp_path, "tall.png", wide.T)]
    source = ImageFolderSource([*files, save(tmp_path, "small.png", small)], size=8, channels=1)
    assert source.shape == (1, 8, 8)
    first, second, third = source.gather(np.arange(3))[:, 0]
    # The bicubic filter reaches over two pixels of the result, so rows away from the edge are
    # exact, and all columns are alike: nothing comes in from the margins.
    np.testing.assert_array_equal(first[:2], np.full((2, 8), 40))
    np.testing.assert_array_equal(first[-2:], np.full((2, 8), 200))
    np.testing.assert_array_equal(first, np.repeat(first[:, :1], 8, axis=1))
    np.testing.assert_array_equal(second, first.T)
    np.testing.assert_array_equal(third, small)


def test_images_of_other_modes_are_converted_where_asked(tmp_path):
    from PIL import Image

    colour = random_pixels(3, 3, 4)
    files = [save(tmp_path, "rgba.png", colour), save(tmp_path, "grey.png", colour[..., 0])]
    palette = Image.fromarray((np.arange(9) % 3).astype(np.uint8).reshape(3, 3)).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90] + [0] * 759)
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 128, 255]))
    files.append(str(tmp_path / "palette.png"))
    with pytest.raises(ValueError, match=r"2 of 3 files .*rgba.*transparency, .*palette.*\(convert=true"):
        ImageFolderSource(files)
    got = ImageFolderSource(files, convert=True).gather(np.arange(3))
    np.testing.assert_array_equal(got[0], colour[..., :3].transpose(2, 0, 1))
    np.testing.assert_array_equal(got[1], np.stack([colour[..., 0]] * 3))
    np.testing.assert_array_equal(got[2][:, 0], [[10, 40, 70], [20, 50, 80], [30, 60, 90]])


def test_image_folder_refuses(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing at path=.*a folder of images"):
        ImageFolder(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"must hold image files \(\.png.*got none"):
        ImageFolder(tmp_path)
    first = save(tmp_path, "a.png", random_pixels(4, 5, 3))
    with pytest.raises(ValueError, match="needs at least 2 examples, got 1"):
        ImageFolder(tmp_path)
    save(tmp_path, "b.png", random_pixels(4, 5, 3))
    for option, message in (
        ({"channels": 2}, r"channels must be 3 \(RGB\) or 1 \(grey\), got 2"),
        ({"size": 0}, "size must be at least 1 pixel, or None, got 0"),
        ({"test_fraction": 1.0}, r"test_fraction must lie between 0 and 1, got 1\.0"),
        ({"seed": -1}, "seed must be from 0 .* got -1"),
        ({"split": "size"}, "split must be 'names' or 'positions', got 'size'"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageFolder(tmp_path, **option)
    other = save(tmp_path, "c.png", random_pixels(6, 5, 3))
    with pytest.raises(ValueError, match=r"a\.png' has 4 x 5 .*c\.png' has 6 x 5; give size"):
        ImageFolder(tmp_path)
    assert ImageFolder(tmp_path, size=4, test_fraction=0.5).shape == (3, 4, 4)
    save(tmp_path, "c.png", random_pixels(4, 5).astype(np.uint16) * 257)
    with pytest.raises(ValueError, match=r"c\.png' would not be kept as it is: 16 bits per channel"):
        ImageFolder(tmp_path, convert=True)
    Path(other).write_text("no image")
    with pytest.raises(ValueError, match=r"c\.png' is not an image that can be read"):
        ImageFolder(tmp_path)
    # Only headers are read at first: what is damaged further on is named when it is gathered.
    source = ImageFolderSource([first])
    content = Path(first).read_bytes()
    Path(first).write_bytes(content[:60])
    with pytest.raises(ValueError, match=r"a\.png' cannot be decoded"):
        source.gather(np.array([0]))
    save(tmp_path, "a.png", random_pixels(2, 2, 3))
    with pytest.raises(ValueError, match=r"a\.png' has changed .* 4 x 5 pixels, got 2 x 2"):
        source.gather(np.array([0]))
