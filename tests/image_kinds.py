"""Image files of every kind that 8 bits of grey or RGB do not keep, as bytes, each with what is lost."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms
from sources import chunk, png, random_pixels, tiff

RGB = random_pixels(4, 5, 3)


def saved(image, ending, **options):
    """The bytes of a file that Pillow writes."""
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, ending, **options)
    return file.getvalue()


def _exif(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def _profile(gamma=1.0):
    """An ICC profile of linear light, from the one of sRGB by its curves."""
    whole = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", whole, 128)
    for i in range(count):
        name, place, _ = struct.unpack_from(">4sII", whole, 132 + 12 * i)
        if name in (b"rTRC", b"gTRC", b"bTRC"):
            whole[place : place + 16] = struct.pack(">4sIHHi", b"para", 0, 0, 0, int(gamma * 65536))
    return bytes(whole)


def _several(ending):
    frames = [Image.fromarray(random_pixels(4, 5, 3, seed=i)) for i in range(2)]
    return saved(frames[0], ending, save_all=True, append_images=frames[1:])


def _palette(transparency=None):
    grey = Image.fromarray((np.arange(20) % 3).astype(np.uint8).reshape(4, 5)).convert("P")
    grey.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90] + [0] * 759)
    return saved(grey, "PNG", **({} if transparency is None else {"transparency": transparency}))


def kinds():
    """Name of the file, its bytes, and what is lost."""
    grey = Image.fromarray(RGB[..., 0])
    exif = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, 6, 0, 0)
    words = random_pixels(4, 5, 3).astype("<u2") * 257
    yield "rgb16.png", png(16, 2), "16 bits per channel"
    yield "grey16.png", png(16, 0), "16 bits per channel"
    yield "rgba16.png", png(16, 6), "transparency"
    yield "grey_alpha16.png", png(16, 4), "transparency"
    yield "rgba.png", png(8, 6), "transparency"
    yield "grey_alpha.png", png(8, 4), "transparency"
    yield "grey1.png", png(1, 0), "1 bit per pixel"
    yield "grey2.png", png(2, 0), "2 bits per channel"
    yield "grey4.png", png(4, 0), "4 bits per channel"
    yield "clear_colour.png", png(8, 2, chunk(b"tRNS", bytes(6))), "transparency"
    yield "clear_grey.png", png(8, 0, chunk(b"tRNS", bytes(2))), "transparency"
    yield "clear_entry.png", png(4, 3, chunk(b"tRNS", b"\0")), "transparency"
    yield "clear_palette.png", _palette(bytes([0, 128, 255])), "transparency"
    yield "linear.png", png(8, 2, chunk(b"gAMA", struct.pack(">I", 100000))), "the gamma 1"
    profile = b"linear\0\0" + zlib.compress(_profile())
    yield "profile.png", png(8, 2, chunk(b"iCCP", profile)), "a colour profile other than sRGB"
    yield "turned.png", png(8, 2, chunk(b"eXIf", exif)), r"the orientation 6 \(EXIF\)"
    yield "animated.png", _several("PNG"), "2 frames"
    yield "animated.gif", _several("GIF"), "2 frames"
    yield "clear.gif", saved(random_pixels(4, 5, 4) // 128 * 255, "GIF"), "transparency"
    yield "animated.webp", _several("WEBP"), "2 frames"
    yield "alpha.webp", saved(random_pixels(4, 5, 4), "WEBP", lossless=True), "transparency"
    yield "turned.webp", saved(RGB, "WEBP", exif=_exif(6)), r"the orientation 6 \(EXIF\)"
    yield "turned.jpg", saved(RGB, "JPEG", exif=_exif(6)), r"the orientation 6 \(EXIF\)"
    yield "profile.jpeg", saved(RGB, "JPEG", icc_profile=_profile()), "a colour profile other than sRGB"
    yield "cmyk.jpg", saved(Image.fromarray(RGB).convert("CMYK"), "JPEG"), "CMYK colours"
    yield "several.jpg", _several("MPO"), "2 frames"
    yield "one_bit.bmp", saved(grey.convert("1"), "BMP"), "1 bit per pixel"
    yield "rgb16.tif", tiff(4, 5, words.tobytes(), t258=(16, 16, 16)), "16 bits per channel"
    yield "grey16.tif", saved(words[..., 0], "TIFF"), "16 bits per channel"
    yield "planes16.tif", _planes(words), "16 bits per channel"
    yield "float.tiff", saved(RGB[..., 0].astype(np.float32), "TIFF"), "floats"
    yield "signed.tif", _signed(), "numbers that are not unsigned integers"
    yield "long.tif", saved(RGB[..., 0].astype(np.int32), "TIFF"), "more than 8 bits per channel"
    yield "one_bit.tif", saved(grey.convert("1"), "TIFF"), "1 bit per pixel"
    yield "grey4.tif", _shallow(), "4 bits per channel"
    yield "alpha.tif", saved(random_pixels(4, 5, 4), "TIFF"), "transparency"
    yield "fourth.tif", _fourth(), "an extra channel"
    yield "cmyk.tif", saved(Image.fromarray(RGB).convert("CMYK"), "TIFF"), "CMYK colours"
    yield "lab.tif", saved(Image.frombytes("LAB", (5, 4), bytes(60)), "TIFF"), "colours in the mode LAB"
    yield "pages.tif", _several("TIFF"), "2 frames"
    yield "turned.tif", saved(RGB, "TIFF", tiffinfo={274: 3}), r"the orientation 3 \(EXIF\)"
    yield "palette16.tif", _deep_palette(), "a palette of 16 bits"
    yield "rgb16.ppm", b"P6 5 4 65535\n" + words.astype(">u2").tobytes(), "65536 levels"
    yield "levels.ppm", b"P6 5 4 100\n" + bytes(60), "101 levels"
    yield "grey16.pgm", b"P5 5 4 65535\n" + bytes(40), "more than 8 bits per channel"
    yield "bits.pbm", b"P4 5 4\n" + bytes(4), "1 bit per pixel"


def kept():
    """Name of the file, its bytes and its pixels: what 8 bits of grey or RGB do keep."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey = RGB[..., 0]
    few = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], np.uint8)[(np.arange(20) % 3).reshape(4, 5)]
    gamma = chunk(b"gAMA", struct.pack(">I", 45455))
    yield "rgb.png", saved(RGB, "PNG"), RGB
    yield "grey.png", saved(grey, "PNG"), grey
    yield "gamma.png", png(8, 2, gamma), random_pixels(4, 15).reshape(4, 5, 3)
    yield "srgb.png", saved(RGB, "PNG", icc_profile=profile), RGB
    yield "palette.png", _palette(), few
    yield "upright.png", saved(RGB, "PNG", exif=_exif(1)), RGB
    yield "rgb.bmp", saved(RGB, "BMP"), RGB
    yield "rgb.webp", saved(RGB, "WEBP", lossless=True), RGB
    yield "rgb.tiff", saved(RGB, "TIFF", compression="tiff_lzw"), RGB
    yield "rgb.tif", tiff(4, 5, RGB.tobytes(), t258=(8, 8, 8)), RGB
    yield "grey.tif", saved(grey, "TIFF"), grey
    yield "rgb.ppm", saved(RGB, "PPM"), RGB
    yield "grey.pgm", saved(grey, "PPM"), grey
    yield "grey.gif", saved(grey, "GIF"), grey


def _planes(words):
    planes = words.transpose(2, 0, 1).tobytes()
    return tiff(4, 5, planes, t258=(16, 16, 16), t284=(2,))


def _signed():
    return tiff(4, 5, bytes(20), t258=(8,), t262=(1,), t277=(1,), t339=(2,))


def _shallow():
    return tiff(4, 5, bytes(12), t258=(4,), t262=(1,), t277=(1,))


def _fourth():
    return tiff(4, 5, bytes(80), t258=(8, 8, 8, 8), t277=(4,), t338=(0,))


def _deep_palette():
    colours = tuple(range(1000, 1000 + 3 * 256))
    return tiff(4, 5, bytes(20), t258=(8,), t262=(3,), t277=(1,), t320=colours)
