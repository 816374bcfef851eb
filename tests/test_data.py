"""Sources, data sets that need no file, and what holds for every data set."""

import ast
import collections
import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import numpy as np
import pytest
from sources import everything, labels_of

from diffkit import registry
from diffkit.data import (
    AbstractDataset,
    AbstractSource,
    ArrayData,
    ArraySource,
    Cifar10,
    Digits,
    Idx,
    ImageFolder,
    SubsetSource,
    Swirl,
    condition_size,
)


def test_array_source_gathers_in_the_given_order_and_copies():
    array = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    source = ArraySource(array)
    assert len(source) == 4
    assert source.shape == (2, 3)
    batch = source.gather(np.array([3, 0, 3]))
    np.testing.assert_array_equal(batch, array[[3, 0, 3]])
    batch[...] = 0
    assert array[3].min() == 18


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5, np.uint8), r"at least one more.*got the shape \(5,\)"),
        (np.zeros((0, 3), np.uint8), r"empty, got the shape \(0, 3\)"),
        (np.zeros((2, 3)), "integers or float32, got float64"),
        (np.zeros((2, 3), bool), "integers or float32, got bool"),
    ],
)
def test_array_source_refuses(array, message):
    with pytest.raises(ValueError, match=message):
        ArraySource(array)


def test_subset_source_counts_within_its_indices():
    array = np.arange(10, dtype=np.uint8)[:, None]
    source = SubsetSource(SubsetSource(ArraySource(array), np.array([9, 4, 2])), np.array([2, 0]))
    np.testing.assert_array_equal(everything(source)[:, 0], [2, 9])
    for wrong in ([], [10], [-1]):
        with pytest.raises(ValueError, match="from 0 to 9"):
            SubsetSource(ArraySource(array), np.array(wrong, dtype=int))


def test_a_dataset_of_a_plugin_is_checked():
    class Mine(AbstractDataset):
        train: AbstractSource
        test: AbstractSource
        levels: int | None = eqx.field(static=True)
        shape: tuple[int, ...] = eqx.field(static=True)

    two, three = (ArraySource(np.zeros((5, size), np.uint8)) for size in (2, 3))
    assert Mine(two, two, 4, (2,)).shape == (2,)
    with pytest.raises(ValueError, match=r"Mine: the examples of test must have the shape \(2,\)"):
        Mine(two, three, 4, (2,))
    with pytest.raises(ValueError, match="levels must be at least 2"):
        Mine(two, two, 1, (2,))


def test_a_dataset_with_its_own_init_declares_no_fields():
    class Own(AbstractDataset):
        def __init__(self, mean, std):
            noise = np.random.default_rng(0).normal(size=(9000, 2))
            values = (mean + std * noise).astype(np.float32)
            self.train, self.test = ArraySource(values[:8500]), ArraySource(values[8500:])
            self.levels, self.shape = None, (2,)

    for mean, std in ((0.0, 1.0), (-3e6, 2.5), (7.0, 0.0)):
        data = Own(mean, std)
        values = everything(data.train).astype(np.float64)
        np.testing.assert_allclose(data.statistics, (values.mean(), values.std()), rtol=1e-9, atol=1e-9)

    class Long(AbstractDataset):
        def __init__(self):
            source = ArraySource(np.zeros((5, 2), np.uint8))
            super().__init__(source, source, 1, (2,))

    with pytest.raises(ValueError, match="Long: levels must be at least 2"):
        Long()


def test_every_dataset_is_registered():
    names = {
        "digits": Digits,
        "swirl": Swirl,
        "idx": Idx,
        "cifar10": Cifar10,
        "image_folder": ImageFolder,
        "array": ArrayData,
    }
    assert {name: registry.get("data", name) for name in names} == names


def test_digits_is_the_stored_order_of_scikit_learn():
    from sklearn.datasets import load_digits

    data = Digits()
    assert (data.levels, data.shape) == (17, (1, 8, 8))
    assert (len(data.train), len(data.test)) == (1500, 297)
    flat = np.concatenate([everything(data.train), everything(data.test)]).reshape(1797, 64)
    np.testing.assert_array_equal(flat, load_digits().data)
    assert flat.dtype == np.uint8
    # Known of this split: independent categoricals per pixel, add-half smoothing, bits per pixel.
    train, test = flat[:1500], flat[1500:]
    counts = (train[:, :, None] == np.arange(17)).sum(0) + 0.5
    bits = -np.log2(counts / counts.sum(1, keepdims=True))
    assert bits[np.arange(64), test].mean() == pytest.approx(2.364, abs=5e-4)


def test_digits_with_labels():
    from sklearn.datasets import load_digits

    plain, data = Digits(), Digits(labels=True)
    assert (condition_size(plain), condition_size(data), data.train.classes) == (0, 10, 10)
    assert labels_of(data.train) + labels_of(data.test) == load_digits().target.tolist()
    np.testing.assert_array_equal(everything(data.test), everything(plain.test))


def test_swirl_has_the_entropy_of_the_reference():
    data = Swirl()
    points = everything(data.train)
    assert (points.shape, points.dtype) == ((1024, 2), np.uint8)
    assert (data.levels, data.shape) == (256, (2,))
    share = np.array(list(collections.Counter(map(tuple, points.tolist())).values())) / 1024
    assert -(share * np.log2(share)).sum() / 2 == pytest.approx(4.7353, abs=5e-5)


def test_swirl_tests_on_the_next_seed():
    assert eqx.tree_equal(Swirl(seed=3).test, Swirl(seed=4).train)
    assert not eqx.tree_equal(Swirl(seed=3).test, Swirl(seed=3).train)
    assert len(Swirl(points=7).test) == 7
    with pytest.raises(ValueError, match="points must be at least 1, got 0"):
        Swirl(points=0)
    with pytest.raises(ValueError, match="seed must be from 0 to 4294967294, got -1"):
        Swirl(seed=-1)


def test_nothing_heavy_is_imported():
    code = "import sys, diffkit.data; print([m for m in ('grain', 'sklearn', 'PIL') if m in sys.modules])"
    root = str(Path(sys.modules["diffkit.data"].__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert ast.literal_eval(done.stdout) == []
