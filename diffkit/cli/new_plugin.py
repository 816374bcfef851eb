"""`diffkit new-plugin NAME`: the beginning of a plugin, a distribution that passes its own checks."""

import argparse
import keyword
import os
import re
import string
from pathlib import Path

from diffkit.cli.plugins import reports, wrong

_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "$distribution"
version = "0.1.0"
description = "A plugin of diffkit: $name"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["diffkit>=0.1,<0.2"]

[project.optional-dependencies]
dev = ["diffkit[train]", "pytest>=8.3"]

# What diffkit finds: importing this module registers the parts.
[project.entry-points."diffkit.plugins"]
$name = "$package"

[tool.hatch.build.targets.wheel]
packages = ["$package"]

[tool.pytest.ini_options]
testpaths = ["tests"]
addopts = "--import-mode=importlib"
"""

_README = """\
# $distribution

A plugin of diffkit, with the schedule `${name}_bent`.

```bash
pip install -e '.[dev]'
pytest                        # the laws, as tests
diffkit check $name  # the laws, as a table
diffkit train data=digits schedule=${name}_bent schedule.bend=0.7
```
"""

_INIT = '''\
"""A plugin of diffkit. Importing it registers its parts."""

from diffkit.typing import check_types

# Before the modules whose annotations it checks at run time.
check_types("$package")

from $package.schedules import Bent as Bent
'''

_SCHEDULES = '''\
"""Schedules: how the noise level depends on time."""

import math

import jax.numpy as jnp

import diffkit as dk
from diffkit.schedules import check_range
from diffkit.typing import Scalar, ScalarLike, as_float


@dk.register("schedule", "${name}_bent")
class Bent(dk.AbstractSchedule):
    """A bent line between two endpoints.

    The position between the endpoints is s(t) = t + bend t (1 - t). A positive bend spends more time in
    the noisier half of the range, a negative one in the cleaner half.

    **Arguments:**

    - `logsnr_max`, `logsnr_min`: log SNR at t = 0 and at t = 1; by default the first fits the data's
      levels (`diffkit.schedules.check_range`).
    - `bend`: between -1 and 1, both excluded; 0 is the straight line.
    - `levels`: the number of values of a dimension of the data; diffkit fills it in.

    **Raises:** `ValueError` if `bend` is out of range or the endpoints are not in order.
    """

    logsnr_max: float
    logsnr_min: float
    bend: float

    def __init__(
        self,
        logsnr_max: float | None = None,
        logsnr_min: float = -5.0,
        *,
        bend: float = 0.5,
        levels: int | None = None,
    ):
        if not (math.isfinite(bend) and -1 < bend < 1):
            raise ValueError(f"bend must be between -1 and 1, got {bend}.")
        self.logsnr_max, self.logsnr_min = check_range(logsnr_max, logsnr_min, levels)
        self.bend = bend

    def __call__(self, t: ScalarLike) -> Scalar:
        t = as_float(t)
        s = t + self.bend * t * (1 - t)
        # Both products, so that both ends are exact in float32.
        return (1 - s) * self.logsnr_max + s * self.logsnr_min

    def inverse(self, logsnr: ScalarLike) -> Scalar:
        s = (self.logsnr_max - as_float(logsnr)) / (self.logsnr_max - self.logsnr_min)
        # The root of a quadratic, in the form that loses no digits where bend is small.
        b = 1 + self.bend
        return 2 * s / (b + jnp.sqrt(b * b - 4 * self.bend * s))
'''

_TESTS = '''\
"""The laws of diffkit, put to the parts of this plugin, and tests of what is its own."""

import functools

import numpy as np
import pytest
from $package.schedules import Bent

from diffkit import testing


class TestBent(testing.ScheduleLaws):
    part = Bent


class TestBentTheOtherWay(testing.ScheduleLaws):
    part = functools.partial(Bent, bend=-0.9)


def test_bend_moves_the_middle():
    # s(1/2) = 1/2 + bend / 4, which is 0.7 for a bend of 0.8.
    np.testing.assert_allclose(Bent(10.0, -10.0, bend=0.0)(0.5), 0.0, atol=1e-6)
    np.testing.assert_allclose(Bent(10.0, -10.0, bend=0.8)(0.5), -4.0, rtol=1e-6)


def test_bend_out_of_range():
    with pytest.raises(ValueError, match="bend must be between -1 and 1, got 1"):
        Bent(bend=1.0)
'''

_FILES = {
    "pyproject.toml": _PYPROJECT,
    "README.md": _README,
    "$package/__init__.py": _INIT,
    "$package/schedules.py": _SCHEDULES,
    "$package/py.typed": "",
    "tests/test_laws.py": _TESTS,
}

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def skeleton(name: str) -> dict[str, str]:
    """The files of a new plugin.

    **Arguments:** `name`: of the plugin, a lower-case identifier.

    **Returns:** the text of each file by its path.

    **Raises:** `ValueError` for an invalid name.
    """
    if _NAME.fullmatch(name) is None or keyword.iskeyword(name) or len(name) > 64:
        raise ValueError(f"NAME must be a lower-case identifier such as 'my_plugin', got {name!r}.")
    words = {
        "name": name,
        "package": f"diffkit_{name}",
        "distribution": f"diffkit-{name.replace('_', '-')}",
    }
    return {
        string.Template(path).substitute(words): string.Template(text).substitute(words)
        for path, text in _FILES.items()
    }


def new_plugin(arguments: list[str]) -> int:
    """The command, given what follows its name.

    **Returns:** the exit status: 0, or 2 for wrong usage, in which case nothing is written.

    **Raises:** `SystemExit` for help and wrong usage, which argparse explains.
    """
    parser = argparse.ArgumentParser(
        prog="diffkit new-plugin",
        description="Write a distribution with one part, which passes its own tests and "
        "'diffkit check', to be edited into a plugin.",
    )
    parser.add_argument("name", metavar="NAME", help="of the plugin: a lower-case identifier")
    parser.add_argument("--path", metavar="DIR", help="the folder to make; by default ./NAME")
    given = parser.parse_args(arguments)
    folder = Path(given.path if given.path is not None else given.name)
    try:
        files = skeleton(given.name)
        if taken := reports().get(given.name):
            raise ValueError(
                f"there is a plugin {given.name!r} already, of the distribution "
                f"{taken.distribution!r}. Choose another name."
            )
        if os.path.lexists(folder):
            raise ValueError(f"{folder} exists already. Name another folder with --path.")
        folder.mkdir(parents=True)
        for path, text in files.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("x") as new:
                new.write(text)
            print(file)
    except ValueError as error:
        return wrong("new-plugin", str(error))
    except OSError as error:
        return wrong("new-plugin", f"{error.filename or folder} cannot be written: {error.strerror}.")
    print(
        f"\nnext:\n  pip install -e {folder}\n  pytest {folder}\n  diffkit check {given.name}\n"
        f"  diffkit train data=digits schedule={given.name}_bent"
    )
    return 0
