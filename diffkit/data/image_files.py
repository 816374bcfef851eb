"""Image files: what is in them, and what arrays of 8 bits, grey or RGB, cannot keep of it.

Pillow converts in silence: of 16 bits per channel of an RGB image it keeps 8. Here a file is first looked
at (`image_header`), and what would be lost has a name.
"""

import contextlib
import dataclasses
import functools
import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import UInt8

from diffkit.lazy import needed

# Found by content, whatever the name says. Not all that Pillow knows: it runs a program to read EPS.
_FORMATS: Final = ("BMP", "GIF", "JPEG", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
_RATIO: Final = 1032  # how much smaller than its content deflated data can be
_MODES: Final = {
    "1": "1 bit per pixel",
    "F": "floats",
    "I": "more than 8 bits per channel",
    "CMYK": "CMYK colours",
}
# Pillow's names of how pixels are stored; others with a semicolon have another depth.
_STORED_IN_BYTES: Final = ("P;1", "P;2", "P;4", "L;I")
_BITS, _EXTRA, _FORMAT, _ORIENTATION, _COLOURS = 258, 338, 339, 274, 320  # tags of TIFF and EXIF


@dataclass(frozen=True)
class ImageHeader:
    """What the header of an image file says.

    **Attributes:** `height`, `width`: in pixels; `mode`: Pillow's name for the kind of pixels; `losses`:
    what an array of 8 bits, grey or RGB, cannot keep, in words: a greater or smaller depth, transparency,
    further frames, an orientation, other colours than those of sRGB. Empty if all is kept.
    """

    height: int
    width: int
    mode: str
    losses: tuple[str, ...] = ()

    def refusal(self, *, convert: bool = False) -> str | None:
        """Why the file is not taken, or `None` if it is.

        **Arguments:** `convert`: whether its losses are accepted. Those of floats and of more than 8 bits
        of grey never are: Pillow clips them.
        """
        taken = not self.losses or (convert and self.mode[0] not in "IF")
        return None if taken else f"would not be kept as it is: {', '.join(self.losses)}"


def image_header(file: str | os.PathLike[str]) -> ImageHeader:
    """Look at an image file without decoding its pixels.

    **Arguments:** `file`: BMP, GIF, JPEG, PNG, PPM, QOI, TGA, TIFF or WebP.

    **Raises:** `ValueError`, naming the file, if it is not such an image, is damaged, or has more pixels
    than `PIL.Image.MAX_IMAGE_PIXELS`; `ImportError` without Pillow.
    """
    name, pillow = os.fspath(file), needed("PIL.Image", "images need Pillow")
    try:
        with warnings.catch_warnings():  # which name no file
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with _opened(name) as image:
                return _header(image)
    except (pillow.DecompressionBombWarning, pillow.DecompressionBombError) as error:
        raise ValueError(f"{name!r} is refused as an image bomb: {error}") from error
    except Exception as error:  # Pillow raises several kinds, by format and damage
        raise ValueError(f"{name!r} is not an image that can be read: {error}") from error


def image_pixels(
    file: str | os.PathLike[str], channels: int = 3, *, convert: bool = False, size: int | None = None
) -> UInt8[np.ndarray, "height width {channels}"]:
    """Decode an image file.

    **Arguments:** `file`: as in `image_header`; `channels`: 3 for RGB, 1 for grey, to which colours are
    converted; `convert`: take the file in spite of its losses, as Pillow does: the first frame, as stored,
    without transparency; `size`: crop to the largest centred square and resize it to this height and width,
    with an antialiased bicubic filter.

    **Raises:** `ValueError`, naming the file, if it cannot be decoded or, without `convert`, has losses.
    """
    name = os.fspath(file)
    needed("PIL.Image", "images need Pillow")
    try:
        with _opened(name) as opened:
            header = _header(opened)
            opened.load()
            if not header.losses:  # a PNG may have its orientation behind its pixels
                header = dataclasses.replace(header, losses=tuple(_orientation(opened)))
            refusal = header.refusal(convert=convert)
            image = opened.convert("RGBA") if opened.mode in ("P", "PA") else opened
            image = image.convert("L" if channels == 1 else "RGB")
            if size is not None and image.size != (size, size):
                side = min(image.size)
                left, top = ((length - side) // 2 for length in image.size)
                # Not `resize(..., box=...)`, whose filter reaches over the edges of the box.
                image = image.crop((left, top, left + side, top + side))
                image = image.resize((size, size), 3)  # Pillow's number for its bicubic filter
            pixels = np.asarray(image)
    except Exception as error:
        raise ValueError(f"{name!r} cannot be decoded: {error}") from error
    if refusal is not None:
        raise ValueError(f"{name!r} {refusal}.")
    return pixels.reshape(*pixels.shape[:2], channels)


class _File(io.BufferedReader):
    """A file of which no more is read than there is; Pillow makes room for what a header says."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(os.fstat(self.fileno()).st_size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


@contextlib.contextmanager
def _opened(name: str) -> Iterator[Any]:
    pillow = needed("PIL.Image", "images need Pillow")
    with _File(io.FileIO(name)) as file, pillow.open(file, formats=_FORMATS) as image:
        yield image


def _header(image: Any) -> ImageHeader:
    size = os.fstat(image.fp.fileno()).st_size
    least = image.width * image.height * (len(image.getbands()) if image.mode in ("RGB", "RGBA") else 0.125)
    if image.format == "PNG" and least > _RATIO * size + 2**10:
        raise ValueError(f"its header says {image.height} x {image.width} pixels, but it has {size} bytes")
    return ImageHeader(image.height, image.width, image.mode, tuple(_losses(image)))


def _losses(image: Any) -> list[str]:
    """What an opened image has that 8 bits of grey or RGB do not keep."""
    mode, info = image.mode, image.info
    found = []
    if mode.startswith("I;"):
        found.append(f"{mode[2:4]} bits per channel")
    elif mode in _MODES:
        found.append(_MODES[mode])
    elif mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in info:
        found.append("transparency")
    elif mode not in ("L", "P", "RGB"):
        found.append(f"colours in the mode {mode}")
    found += _depth(image)
    if (frames := getattr(image, "n_frames", 1)) > 1:
        found.append(f"{frames} frames")
    return [*dict.fromkeys(found), *_orientation(image), *_colours(image)]


def _depth(image: Any) -> Iterator[str]:
    """A depth that the mode does not tell."""
    for codec, _, _, how in image.tile or ():
        stored, *rest = (how,) if isinstance(how, str) else how or ("",)
        if isinstance(stored, str) and ";" in stored and stored not in _STORED_IN_BYTES:
            deep = stored.partition(";")[2]
            if image.mode == "RGBA" and deep.startswith("16") and image.format == "PNG":
                yield "16 bits per channel"
            elif not image.mode.startswith("I"):
                bits = deep.rstrip("BLNISR")
                yield f"{bits} bits per channel" if bits.isdigit() else f"pixels stored as {stored}"
        if str(codec).startswith("ppm") and rest[-1:] != [255]:
            yield f"{rest[-1] + 1} levels"
    if image.format == "TIFF":
        tags = image.tag_v2
        bits = {*tags.get(_BITS, (1,))}
        if {*tags.get(_FORMAT, (1,))} != {1}:
            yield "numbers that are not unsigned integers"
        if (bits - {8} and image.mode != "P") or max(bits) > 8:
            yield f"{max(bits)} bits per channel" if image.mode != "1" else _MODES["1"]
        if 0 in tags.get(_EXTRA, ()):
            yield "an extra channel"
        if image.mode == "P" and any(value % 257 and value % 256 for value in tags.get(_COLOURS, ())):
            yield "a palette of 16 bits"


def _orientation(image: Any) -> list[str]:
    # Of a PNG, `getexif` would decode all to look for one that comes later.
    known = image.format != "PNG" or {"exif", "Raw profile type exif", "XML:com.adobe.xmp"} & {*image.info}
    turned = image.getexif().get(_ORIENTATION, 1) if known else 1
    return [] if turned in (0, 1) else [f"the orientation {turned} (EXIF)"]


def _colours(image: Any) -> Iterator[str]:
    """A profile under which the same numbers are other colours than without one."""
    profile, gamma = image.info.get("icc_profile"), image.info.get("gamma")
    if profile:
        if not _is_srgb(bytes(profile), "L" if image.mode in ("1", "L", "LA") else "RGB"):
            yield "a colour profile other than sRGB"
    elif gamma is not None and "srgb" not in image.info and abs(gamma - 1 / 2.2) > 0.01:
        yield f"the gamma {gamma:g}"


@functools.lru_cache(maxsize=64)
def _is_srgb(profile: bytes, mode: str) -> bool:
    """Whether colours under a profile are those of sRGB, to within rounding."""
    pillow = needed("PIL.Image", "images need Pillow")
    steps = np.arange(0, 256, 51, dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(36, 6, 3)
    plain = pillow.fromarray(colours if mode == "RGB" else np.ascontiguousarray(colours[..., 0]))
    try:
        cms = needed("PIL.ImageCms", "colour profiles need Pillow")
        own = cms.ImageCmsProfile(io.BytesIO(profile))
        change = cms.buildTransform(own, cms.createProfile("sRGB"), mode, "RGB")
        shown = cms.applyTransform(plain, change)
    except Exception:  # a damaged profile, or one of other colours; a Pillow without littlecms
        return False
    assert shown is not None
    return bool(np.abs(np.asarray(shown, int) - np.asarray(plain.convert("RGB"), int)).max() <= 3)
