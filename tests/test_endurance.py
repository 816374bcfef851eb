"""Long training and long sweeps do not grow, and the same command twice gives the same."""

import importlib.util
import json
import sys
from pathlib import Path

import equinox as eqx
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

from diffkit.cli import main
from diffkit.configs import make, read_config
from diffkit.runs import assembled
from diffkit.training import Checkpoints, init_state

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "endurance.py"
SMALL = (
    *("preset=vdm", "data=swirl", "data.points=64", "network=mlp", "network.width=8"),
    *("network.depth=1", "train.steps=20", "train.batch_size=16", "train.evaluate_every=10"),
    *("samples=4", "sample_steps=3", "passes=1", "variance=true"),
)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty directory to work in; Hydra's global state is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["diffkit"])
    state = ConfigStore.get_state()
    yield tmp_path
    ConfigStore.set_state(state)
    GlobalHydra.instance().clear()


@pytest.fixture(scope="module")
def endurance():
    spec = importlib.util.spec_from_file_location("endurance", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["endurance"] = module  # where its dataclass looks for annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules["endurance"]


def assert_flat(rows):
    """Nothing grows once it has settled, but for memory within noise and pools of threads that fill."""
    settled, last = rows[len(rows) // 3], rows[-1]
    assert rows[0].compiled > 0, "the meter heard nothing"
    assert last.compiled == settled.compiled
    assert last.files <= settled.files
    assert last.threads <= settled.threads + 4
    # In a process that ran other tests before, the heap moves by tens of MiB.
    assert last.memory < settled.memory + 50


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_long_training_does_not_grow(endurance, workplace):
    rows = endurance.steps(2_000, workplace / "run")
    assert [row.done for row in rows] == list(range(200, 2_001, 200))
    assert_flat(rows)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_sweep_in_one_process_does_not_grow(endurance, workplace):
    assert_flat(endurance.runs(30, workplace / "sweep"))


def records(path):
    """The metrics of a run, but for the seconds."""
    lines = (json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def state_of(path):
    """The whole state of the newest checkpoint, and its step."""
    config = read_config(path)
    parts = assembled(config)
    like = init_state(parts.model, make(config["train"]), parts.time_sampler, parts.optimiser)
    checkpoints = Checkpoints(path / "checkpoints")
    try:
        step = checkpoints.latest_step()
        return step, checkpoints.restore(step, like)[0]
    finally:
        checkpoints.close()


@pytest.mark.slow
def test_the_same_commands_twice_give_the_same(workplace, monkeypatch):
    made = []
    for place in ("one", "other"):
        (workplace / place).mkdir()
        monkeypatch.chdir(workplace / place)
        main(["train", *SMALL, "run=r"])
        main(["sample", "r", "steps=3", "count=4", "seed=5"])
        main(["evaluate", "r", "variance=true", "schedule=cosine", "passes=1"])
        main(["report", "r"])
        run = Path("r")
        made.append((records(run), state_of(run)))
    (lines, (step, state)), (others, (other_step, other_state)) = made
    assert lines == others
    assert step == other_step == 20
    assert eqx.tree_equal(state, other_state)
    files = {
        place: {
            str(file.relative_to(workplace / place)): file.read_bytes()
            for file in (workplace / place).rglob("*")
            if file.is_file() and not {"checkpoints", "tensorboard", "metrics.jsonl"} & {*file.parts}
        }
        for place in ("one", "other")
    }
    assert files["one"].keys() == files["other"].keys()
    # A report says how many seconds its runs took.
    different = {name for name, text in files["one"].items() if files["other"][name] != text}
    assert different <= {"report.md"}
