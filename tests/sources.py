"""What the tests of data share: reading whole sources, and files of images."""

import itertools
import struct
import zlib

import numpy as np

from diffkit.data import ArraySource


def everything(source):
    return source.gather(np.arange(len(source)))


def labels_of(source):
    return source.conditions(np.arange(len(source))).argmax(axis=1).tolist()


def take(iterator, count):
    items = list(itertools.islice(iterator, count))
    iterator.close()
    return items


def counting(n):
    """Examples that are their own positions."""
    return ArraySource(np.arange(n, dtype=np.int32)[:, None])


def save(folder, name, pixels, **options):
    from PIL import Image

    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)
    return str(file)


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def chunk(kind, content):
    """A chunk of a PNG file."""
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def png(depth, colour, *chunks, height=4, width=5, claimed=None):
    """The bytes of a PNG file with random pixels, of any depth and colour type, which Pillow cannot write.

    `chunks` stand before the pixels; `claimed` is the height and width in the header, if not the true ones.
    """
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] * width
    rows = random_pixels(height, -(-bits // 8))
    if colour == 3:
        rows %= 2  # entries that the palette has
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    size = claimed or (height, width)
    header = struct.pack(">IIBBBBB", size[1], size[0], depth, colour, 0, 0, 0)
    palette = (chunk(b"PLTE", bytes(range(6))),) if colour == 3 else ()
    body = (chunk(b"IHDR", header), *palette, *chunks, chunk(b"IDAT", packed), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def tiff(height, width, content, **tags):
    """The bytes of an uncompressed TIFF file. `tags`: by number, as `t258=(16, 16, 16)`, all of 16 bits."""
    tags = {256: (width,), 257: (height,), 259: (1,), 262: (2,), 277: (3,), 278: (height,)} | {
        int(name[1:]): value for name, value in tags.items()
    }
    count, place = len(tags) + 2, 8
    after = place + 2 + 12 * count + 4
    entries, beyond = {}, b""
    for tag, values in tags.items():
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) > 4:
            entries[tag] = struct.pack("<HHII", tag, 3, len(values), after + len(beyond))
            beyond += packed + b"\0" * (len(packed) % 2)
        else:
            entries[tag] = struct.pack("<HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    start = after + len(beyond)
    entries[273] = struct.pack("<HHII", 273, 4, 1, start)
    entries[279] = struct.pack("<HHII", 279, 4, 1, len(content))
    directory = struct.pack("<H", count) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    return b"II*\0" + struct.pack("<I", place) + directory + beyond + content
