"""What all tests share: keys, and small models and data."""

import copy
import hashlib
import itertools

import equinox as eqx
import jax
import numpy as np
import pytest

import diffkit as dk
from diffkit import registry


@pytest.fixture
def getkey(request):
    """A function that gives a new key on each call; its seed comes from the test's name."""
    seed = int.from_bytes(hashlib.sha256(request.node.name.encode()).digest()[:4], "big")
    counter = itertools.count()
    return lambda: jax.random.fold_in(jax.random.key(seed), next(counter))


class Toy(dk.data.AbstractDataset):
    """Two columns of integers, the second a function of the first: quick to compile and to learn."""

    train: dk.data.ArraySource
    test: dk.data.ArraySource
    levels: int | None = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, size: int = 64):
        first = np.arange(size) % 8
        values = np.stack([first, 7 - first], axis=1).astype(np.uint8)
        self.train = dk.data.ArraySource(values)
        self.test = dk.data.ArraySource(values[:11])
        self.levels = 8
        self.shape = (2,)


@pytest.fixture(scope="session")
def toy():
    """A dataset of 64 examples of shape (2,) with 8 levels, 11 of them to test on."""
    return Toy()


@pytest.fixture(scope="session")
def toy_model():
    """A function that makes a small model for `toy`; keyword arguments replace its parts."""

    def make(condition_size=0, **parts):
        parts = {"network": ("mlp", {"width": 8, "depth": 1}), "schedule": "learned_linear"} | parts
        spec = {"shape": (2,), "levels": 8, "condition_size": condition_size}
        return dk.preset("vdm", **parts).model(**spec, key=jax.random.key(0))

    return make


@pytest.fixture
def own_registry(monkeypatch):
    """The registry, with what a test adds forgotten afterwards."""
    dk.plugins()
    state = copy.copy(registry._STATE)
    state.parts = {kind: dict(parts) for kind, parts in state.parts.items()}
    monkeypatch.setattr(registry, "_STATE", state)
