"""What 8 bits of grey or RGB do not keep of an image file is refused by name, in every reader."""

import os
from pathlib import Path

import image_kinds
import numpy as np
import pytest
from sources import chunk, png, random_pixels, save

from diffkit.data import ImageFolder, ImageFolderSource, image_header, image_pixels

KINDS = {name: (content, lost) for name, content, lost in image_kinds.kinds()}
KEPT = {name: (content, pixels) for name, content, pixels in image_kinds.kept()}
# Floats and more than 8 bits of grey, which Pillow clips.
NEVER = ("grey16.png", "grey16.tif", "grey16.pgm", "float.tiff", "long.tif")


@pytest.mark.parametrize("name", KINDS)
def test_what_is_not_kept_is_refused(tmp_path, name):
    content, lost = KINDS[name]
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}' would not be kept as it is: (.*, )?{lost}"):
        ImageFolderSource([file])
    with pytest.raises(ValueError, match=f"{name}' (would not be kept|cannot be decoded)"):
        image_pixels(file)
    if name in NEVER:
        with pytest.raises(ValueError, match=f"{name}' "):
            image_pixels(file, convert=True)
    else:
        assert ImageFolderSource([file], convert=True).gather(np.array([0])).dtype == np.uint8


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_is_read_as_it_is(tmp_path, name):
    content, pixels = KEPT[name]
    (tmp_path / name).write_bytes(content)
    channels = 3 if pixels.ndim == 3 else 1
    assert image_header(tmp_path / name).losses == ()
    found = image_pixels(tmp_path / name, channels)
    np.testing.assert_array_equal(found, pixels.reshape(4, 5, channels))


def test_an_orientation_behind_the_pixels_is_seen_when_they_are_read(tmp_path):
    whole = png(8, 2)
    end = whole.index(b"IEND") - 4
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    (tmp_path / "late.png").write_bytes(whole[:end] + chunk(b"eXIf", exif) + whole[end:])
    with pytest.raises(ValueError, match=r"late\.png' would not be kept .* the orientation 6"):
        image_pixels(tmp_path / "late.png")


def test_all_files_that_are_refused_are_named(tmp_path):
    for i in range(12):
        (tmp_path / f"{i:02}.png").write_bytes(png(16, 2))
    with pytest.raises(ValueError, match=r"12 of 12 files .*00\.png.*09\.png' [^']* and 2 more \(convert"):
        ImageFolder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.png", b"This is no image.", "is not an image that can be read"),
        ("empty.jpg", b"", "is not an image that can be read"),
        (
            "bomb.png",
            png(8, 2, claimed=(60000, 60000)),
            "refused as an image bomb: .*3600000000 pix",
        ),
        ("large.png", png(8, 2, claimed=(9500, 9500)), "refused as an image bomb: .*90250000 pix"),
        ("lie.png", png(8, 2, claimed=(9000, 9000)), "its header says 9000 x 9000 pixels, but it has"),
        ("program.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        ("short.gif", b"GIF89a\x05", "is not an image that can be read"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}' .*{message}"):
        image_header(tmp_path / name)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_truncated_files_are_named(tmp_path, ending):
    file = Path(save(tmp_path, f"a.{ending}", random_pixels(40, 40, 3)))
    os.truncate(file, file.stat().st_size * 3 // 4)
    with pytest.raises(ValueError, match=rf"a\.{ending}' (cannot be decoded|is not an image)"):
        image_pixels(file)
    with pytest.raises(ValueError, match=rf"a\.{ending}' (cannot be decoded|is not an image)"):
        ImageFolderSource([file]).gather(np.array([0]))
