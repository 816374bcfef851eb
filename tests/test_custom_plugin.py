"""A stranger's plugin: installed beside diffkit, found, checked and trained with, from the command line.

Everything happens in a virtual environment of its own, without a network: what diffkit needs is borrowed
from the environment that runs the tests, and the plugins are built by pip.
"""

import os
import re
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

from diffkit.cli.new_plugin import new_plugin

EXAMPLE = Path(__file__).parents[1] / "examples" / "custom_plugin"
NEW = "brand_new"

pytestmark = pytest.mark.slow


def run(*command, cwd, status=0):
    """The output of a command, which must end with this status."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | {"PYTHONNOUSERSITE": "1", "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == status, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a virtual environment, the example and a new plugin, both installed in it."""
    folder = tmp_path_factory.mktemp("stranger")
    shutil.copytree(EXAMPLE, folder / "custom_plugin", ignore=shutil.ignore_patterns("__pycache__"))
    assert new_plugin([NEW, "--path", str(folder / NEW)]) == 0
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    own = run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=folder).strip()
    # As site packages, so that the packages that are installed editable are there as well.
    borrowed = "".join(f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages())
    (Path(own) / "borrowed.pth").write_text(borrowed)
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index")
    run(
        *(python, *install, "--no-deps", "--no-build-isolation", "./custom_plugin", f"./{NEW}"),
        cwd=folder,
    )
    # Built and copied, not linked to.
    where = run(python, "-c", "import diffkit_custom; print(diffkit_custom.__file__)", cwd=folder)
    assert where.startswith(own)
    return folder


def diffkit(workplace, *arguments, status=0):
    python = workplace / "venv" / "bin" / "python"
    return run(python, "-m", "diffkit.cli", *arguments, cwd=workplace, status=status)


def test_plugins_shows_it(workplace):
    out = diffkit(workplace, "plugins")
    assert re.search(r"custom +│ 0\.1\.0 +│ .*│ ok", out)
    for name in ("custom_bent", "custom_window", "custom_ralston", f"{NEW}_bent", "cosine"):
        assert name in out


def test_check_finds_it_lawful(workplace):
    out = diffkit(workplace, "check", "custom", NEW)
    for part in (
        "schedule custom_bent",
        "weighting custom_window",
        "sampler custom_ralston",
        "optimiser custom_adamax",
        "preset custom",
        f"schedule {NEW}_bent",
    ):
        assert part in out
    assert re.search(rf"custom, {NEW}: 6 parts, \d\d laws hold, 0 broken, ", out)


def test_trains_and_samples_with_it(workplace):
    small = ["train.steps=6", "train.steps_per_dispatch=3", "train.batch_size=8", "passes=1"]
    small += ["network.width=8", "network.depth=1", "samples=4", "sample_steps=3"]
    # The preset and an option of one of its parts; nothing was written for either.
    out = diffkit(
        *(workplace, "train", "preset=custom", "data=swirl", "run=r", "schedule.bend=-0.2"),
        *("optimiser=custom_adamax", "optimiser.b1=0.8", *small),
    )
    assert re.search(r"test bits/dim: \d+\.\d\d \+- \d+\.\d\d", out)
    config = (workplace / "r" / "config.yaml").read_text()
    assert "diffkit_custom.schedules.Bent" in config
    assert "bend: -0.2" in config
    assert "diffkit_custom.optimisers.Adamax" in config
    assert "b1: 0.8" in config
    assert "diffkit_custom.weightings.window" in config
    # A run of a plugin's parts is read where the plugin is installed.
    out = diffkit(workplace, "sample", "r", "sampler=custom_ralston", "steps=3", "count=4")
    assert out.strip().endswith("samples_custom_ralston_3_count4.png")
    message = diffkit(workplace, "train", "preset=custom", "schedule.bend=2", *small, status=1)
    assert "bend must be between -1 and 1, got 2" in message
    assert "Traceback" not in message


@pytest.mark.parametrize("folder", ["custom_plugin", NEW])
def test_its_own_tests_pass(workplace, folder):
    python = workplace / "venv" / "bin" / "python"
    out = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", ".", cwd=workplace / folder)
    assert re.search(r"\d+ passed", out)
    assert "failed" not in out
