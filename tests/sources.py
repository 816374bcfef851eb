"""What the tests of data share: reading whole sources, and files of images."""

import itertools

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
