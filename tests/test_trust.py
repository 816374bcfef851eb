"""What a stranger sends never acts: configurations, records, links and names.

Each payload goes through a command, in the process. Afterwards no file has changed, no module came that is
not on the list, and the command has said in one line what is wrong with which entry of which file.
"""

import contextlib
import copy
import functools
import importlib.util
import itertools
import json
import os
import re
import shutil
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import hypothesis
import known
import numpy as np
import pytest
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hypothesis import strategies as st

import diffkit as dk
from diffkit.cli import main
from diffkit.configs import checked, make, preset_of, read_config, write_config
from diffkit.files import LARGEST, new_file, read_json, read_yaml, replace_text
from diffkit.nodes import check_node, fits
from diffkit.runs import read_evaluation, read_record
from diffkit.training.figures import plain_label, save_samples
from diffkit.training.metrics import JsonLines

OLD = Path(__file__).parent / "fixtures" / "old_run" / "swirl"
EVIL = """
from pathlib import Path
Path(__file__).with_name("touched").write_text("imported")

class Part:
    def __init__(self, *args, **options):
        Path(__file__).with_name("touched").write_text("called")

def act(*args, **options):
    Part()
"""

COMMANDS = {
    "evaluate": ["evaluate", "RUN", "passes=1"],
    "sample": ["sample", "RUN", "count=1", "steps=1"],
    "convert": ["convert", "RUN", "converted", "process=variance_exploding"],
    "report": ["report", "RUN"],
    "equivalence": ["equivalence", "RUN", "vdm"],
    "of a file": ["equivalence", "vdm", "RUN/config.yaml"],
    "compress": ["compress", "RUN", "test", "out.dkbb"],
    "train": ["train", "data=swirl", "network=mlp", "run=RUN"],
}


@contextlib.contextmanager
def hydra_put_back():
    state = ConfigStore.get_state()
    yield
    ConfigStore.set_state(state)
    GlobalHydra.instance().clear()


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """A directory with a stranger's run and a module of his, which is importable."""
    shutil.copytree(OLD, tmp_path / "RUN")
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["diffkit"])
    with hydra_put_back():
        yield tmp_path
    assert "evil" not in sys.modules


@functools.cache
def stored():
    return yaml.safe_load((OLD / "config.yaml").read_text())


def at(place, value, **more):
    """The configuration with another value at a dotted place."""

    def change():
        config = copy.deepcopy(stored())
        for key, new in {place: value, **more}.items():
            *inside, last = key.split("/")
            node = config
            for name in inside:
                node = node.setdefault(name, {})
            node[last] = new
        return yaml.safe_dump(config, sort_keys=False)

    return change


def without(*place):
    def change():
        config = copy.deepcopy(stored())
        node = config
        for name in place[:-1]:
            node = node[name]
        del node[place[-1]]
        return yaml.safe_dump(config, sort_keys=False)

    return change


def text(added="", *, cut=None, replaced=None):
    """The file with text added, cut, or replaced."""

    def change():
        whole = (OLD / "config.yaml").read_text()
        return (replaced if replaced is not None else whole[:cut]) + added

    return change


def bomb():
    """The alias bomb: nine lines that stand for a billion values."""
    lines = ["a: &a [x,x,x,x,x,x,x,x,x,x]"]
    for last, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{','.join([f'*{last}'] * 10)}]")
    return "\n".join(lines) + "\n"


NODE = {"_target_": "evil.act"}
PART = {"_partial_": True}

# By name: what is in config.yaml, and words of the message.
PAYLOADS = {
    # Things that act, at every place where a configuration names a part.
    **{
        f"{place} {target}": (
            at(f"{place}/_target_", target),
            [f"{place.replace('/', '.')}._target_ must", "registered"],
        )
        for place, target in (
            ("schedule", "io.open"),
            ("process", "os.system"),
            ("parameterization", "builtins.exec"),
            ("decoder", "builtins.eval"),
            ("network", "numpy.save"),
            ("weighting", "numpy.load"),
            ("time_sampler", "subprocess.Popen"),
            ("sampler", "pickle.loads"),
            ("grid", "shutil.rmtree"),
            ("optimiser", "evil.act"),
            ("data", "evil.Part"),
            ("data", "io.open"),
            ("network", "evil"),
            ("network", "this"),
            ("sampler", "antigravity.geohash"),
            ("schedule", "importlib.import_module"),
            ("process", "hydra.utils.call"),
            ("decoder", "hydra_zen.funcs.get_obj"),
            ("decoder", "pathlib.Path.write_text"),
            ("grid", "jax.numpy.save"),
            ("network", "yaml.unsafe_load"),
            ("optimiser", "optax.adam"),
            ("weighting", "diffkit.files.replace_text"),
            ("weighting", "diffkit.configs.make"),
            ("sampler", "diffkit.cli.main"),
            ("schedule", "diffkit.lazy.needed"),
            ("schedule", "diffkit.schedules.math.sqrt"),
            ("schedule", "diffkit.schedules"),
            ("schedule", "diffkit"),
            ("data", "diffkit.data.cifar.pickle.loads"),
            ("schedule", "..evil.act"),
            ("schedule", "evil:act"),
            ("schedule", "evil/act"),
            ("schedule", "__main__.act"),
            ("schedule", "schedule"),
            ("schedule", ""),
        )
    },
    "the setting of training": (
        at("train/_target_", "evil.Part"),
        ["train._target_ must be diffkit.training.config.TrainConfig"],
    ),
    "a target that is a number": (at("grid/_target_", 5), ["grid._target_ must be the import path"]),
    "a target that is a list": (at("grid/_target_", ["os.system"]), ["grid._target_ must be the import"]),
    "a target that is a node": (at("grid/_target_", NODE), ["grid._target_ must be the import path"]),
    "no target": (without("grid", "_target_"), ["grid._target_ must be the import path", "got nothing"]),
    "a part of another kind": (
        at("schedule/_target_", "diffkit.data.swirl.Swirl"),
        ["schedule._target_ must be a registered schedule"],
    ),
    "settings as a part": (
        at("grid/_target_", "diffkit.training.config.TrainConfig"),
        ["grid._target_ must be a registered grid"],
    ),
    # Hydra's other words.
    **{
        f"the word {word}": (at(f"{place}/{word}", value), [f"{place}.{word} must not be there"])
        for place, word, value in (
            ("process", "_args_", ["touched", "w"]),
            ("data", "_args_", [NODE]),
            ("train", "_args_", [1]),
            ("network", "_recursive_", False),
            ("schedule", "_convert_", "object"),
            ("grid", "_mode_", "x"),
            ("sampler", "_", 1),
            ("weighting", "__class__", "evil.Part"),
            ("decoder", "_zen_wrappers", ["evil.act"]),
        )
    },
    "not partial": (at("grid/_partial_", False), ["grid._partial_ must be true, got False"]),
    "partial data": (at("data/_partial_", True), ["data._partial_ must be false, got True"]),
    "partial settings": (at("train/_partial_", True), ["train._partial_ must be false"]),
    "partial in words": (at("grid/_partial_", "evil"), ["grid._partial_ must be true or false"]),
    # Nodes within options.
    "a node in an option": (
        at("network/width", NODE),
        ["network.width._target_ must be a registered part"],
    ),
    "a part in an option": (
        at("network/width", {"_target_": "diffkit.grids.UniformT"}),
        ["network.width must be int"],
    ),
    "a node in a list": (at("network/fourier", [NODE]), ["network.fourier[0]._target_ must be a"]),
    "a node deep in a list": (
        at("data/points", [{"x": [{"y": NODE}]}]),
        ["data.points[0].x[0].y._target_ must be a"],
    ),
    "a node in a setting": (at("train/steps", NODE), ["train.steps._target_ must be a registered part"]),
    "an object in an option": (
        at("network/dtype", {"_target_": "hydra_zen.funcs.get_obj", "path": "os.system"}),
        ["network.dtype.path must name what is registered, got 'os.system'"],
    ),
    "a word in an option": (
        at("network/width", {"_args_": [1]}),
        ["network.width._args_ must not be there"],
    ),
    # The transport that `convert` records.
    "transport to a call": (
        at("transport", {"process": NODE, "schedule": None}),
        ["transport.process._target_ must be a registered process"],
    ),
    "transport with arguments": (
        at("transport", {"schedule": stored()["schedule"] | {"_args_": [1]}}),
        ["transport.schedule._args_ must not be there"],
    ),
    "transport of another kind": (
        at("transport", {"process": stored()["grid"]}),
        ["transport.process._target_ must be a registered process"],
    ),
    "transport of more": (
        at("transport", {"network": NODE}),
        ["transport has no 'network'. It has: process"],
    ),
    "transport that is text": (at("transport", "evil.act"), ["transport must be"]),
    # Keys that are none.
    "an unknown entry": (at("hooks", ["evil.act"]), ["a configuration has no 'hooks'. It has: schedule"]),
    "an entry of Hydra": (at("hydra", {"run": {"dir": "/"}}), ["a configuration has no 'hydra'"]),
    "an entry with defaults": (at("defaults", ["evil"]), ["a configuration has no 'defaults'"]),
    "an unknown option": (
        at("network/widht", 8),
        ["network has no 'widht'. Did you mean 'width'? It has: width, depth"],
    ),
    "an unknown setting": (at("train/stpes", 8), ["train has no 'stpes'. Did you mean 'steps'?"]),
    "an unknown option of data": (
        at("data/command", "rm"),
        ["data has no 'command'. It has: points, seed"],
    ),
    "markup in a key": (at("<script>", 1), ["a configuration has no '<script>'"]),
    "a line in the key of an option": (
        at("network/a\nb", 1),
        ["a key of network must be a short printable"],
    ),
    "a line in a key": (at("a\nb", 1), [r"a configuration has no 'a\nb'"]),
    # Values of a wrong type.
    "a mapping for a number": (at("network/width", {"a": 1}), ["network.width must be int, got {'a': 1}"]),
    "text for a number": (at("network/width", "${oc.env:HOME}"), ["network.width must be int"]),
    "a resolver in a setting": (at("train/seed", "${oc.env:HOME}"), ["train.seed must be int"]),
    "a number for text": (at("network/dtype", 32), ["network.dtype must be str, got 32"]),
    "a fraction for a number": (at("network/depth", 1.5), ["network.depth must be int, got 1.5"]),
    "true for a number": (at("train/steps", True), ["train.steps must be int, got True"]),
    "a list for a node": (at("grid", ["evil.act"]), ["grid must be a mapping, got ['evil.act']"]),
    "text for a node": (at("data", "evil.act"), ["data must be a mapping, got 'evil.act'"]),
    "nothing for a node": (at("train", None), ["train must be a mapping, got None"]),
    "text for data_std": (at("data_std", "wide"), ["data_std must be float, got 'wide'"]),
    "text in a list of steps": (
        at("evaluate_steps", [10, "evil"]),
        ["evaluate_steps must be list[int | None"],
    ),
    "a date": (at("data_std", "2024-01-01"), ["data_std must be float"]),
    "a number without end": (text(replaced=f"train: {'1' * 5000}\n"), ["config.yaml is damaged"]),
    "a large number": (at("train/seed", 2**70), ["train.seed must be below 2^64"]),
    "a negative seed": (at("train/seed", -1), ["train.seed must be at least 0, got -1"]),
    "a long text": (at("network/dtype", "x" * 5000), ["network.dtype must be a text of at most 4096"]),
    "signs for the terminal": (at("network/dtype", "\x1b]0;evil\x07"), ["without control characters"]),
    "text made in Python": (
        at("network", {"_python_": "evil.Part", "content": {}, "_target_": "evil.Part"}),
        ["network has no '_target_'. It has: _python_, content"],
    ),
    "data made in Python": (at("data", {"_python_": "evil.Part"}), ["data.shape is missing"]),
    # Files that are no plain YAML.
    "an alias bomb": (bomb, ["config.yaml is damaged in line 1: anchors are refused"]),
    "an alias": (text("passes2: *x\n"), ["aliases are refused"]),
    "a tag of Python": (
        text(replaced="!!python/object/apply:evil.act []\n"),
        ["line 1: the tag tag:yaml.org,2002:python/object/apply:evil.act is refused"],
    ),
    "a tag within": (text("more: !!python/name:evil.act\n"), ["python/name:evil.act is refused"]),
    "a binary": (text("more: !!binary aGVsbG8=\n"), ["binary is refused"]),
    "a key twice": (text("passes: 5\n"), ["the key 'passes' is there twice"]),
    "a merge": (text("<<: {passes: 5}\n"), ["a key must be text"]),
    "a key that is a number": (text("1: 2\n"), ["a key must be text"]),
    "a key that is a list": (text("? [a]\n: b\n"), ["a key must be text"]),
    "deep": (text("deep: " + "[" * 3000 + "\n"), ["nested more than 64 deep"]),
    "deep blocks": (text("deep:\n" + "- " * 3000 + "x\n"), ["nested more than 64 deep"]),
    "large": (lambda: "a: " + "x" * LARGEST + "\n", [f"must have at most {LARGEST} bytes"]),
    "two documents": (text("---\na: 1\n"), ["damaged in line", "another document"]),
    "not UTF-8": (lambda: b"train: \xff\xfe\n", ["config.yaml is damaged: it is not UTF-8"]),
    "a NUL": (lambda: b"train: \x00\n", ["config.yaml is damaged", "#x0000"]),
    "a directive": (text(replaced="%YAML 9.9\n---\na: 1\n"), ["config.yaml is damaged in line 1"]),
    "a list": (text(replaced="- evil.act\n"), ["a mapping, got ['evil.act']"]),
    "a word alone": (text(replaced="evil\n"), ["a mapping, got 'evil'"]),
    "empty": (text(replaced=""), ["config.yaml is cut short"]),
    "blank": (text(replaced="\n\n"), ["a mapping, got None"]),
    "an open bracket": (text(replaced="train: {\n"), ["config.yaml is damaged in line 2"]),
    # Cut short, and with an entry missing.
    "cut in a line": (text(cut=-2), ["config.yaml is cut short: its last line does not end"]),
    "without data": (without("data"), ["and has no data: is it cut short?"]),
    "without train": (without("train"), ["and has no train: is it cut short?"]),
    "cut in train": (without("train", "seed"), ["and has no train.seed: is it cut short?"]),
    "without steps": (without("train", "steps"), ["and has no train.steps: is it cut short?"]),
}
assert len(PAYLOADS) >= 60


def everything(folder):
    """What is below a folder: every file, link and directory, with what is in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if "__pycache__" in path.parts:
            continue
        if path.is_symlink():
            found[path] = os.readlink(path)
        elif path.is_file():
            found[path] = (path.read_bytes(), path.stat().st_mtime_ns)
        else:
            found[path] = None
    return found


def refused(words, capfd, place):
    """The one line of a command that must fail, without a change to any file and without an import."""
    before, modules = everything(place), set(sys.modules)
    capfd.readouterr()
    began = time.monotonic()
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert time.monotonic() - began < 20
    assert stopped.value.code == 1
    said = capfd.readouterr().err
    assert said.startswith(f"diffkit {words[0]}: ")
    assert said.count("\n") == 1, said
    assert everything(place) == before
    came = {name: sys.modules[name] for name in set(sys.modules) - modules}
    assert not {name.partition(".")[0] for name in came} & {"evil", "this", "antigravity", "turtle"}
    # The command may be the first to need a library; from here nothing comes.
    assert not [name for name, module in came.items() if str(place) in str(getattr(module, "__file__", ""))]
    return said


def write(name, content):
    if isinstance(content, bytes):
        Path(name).write_bytes(content)
    else:
        Path(name).write_text(content)


@pytest.mark.parametrize(("command", "payload"), [*zip(itertools.cycle(COMMANDS), PAYLOADS, strict=False)])
def test_a_configuration_never_acts(workplace, capfd, command, payload):
    _acts_not(workplace, capfd, command, payload)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_no_configuration_ever_acts(workplace, capfd, command):
    half = [*PAYLOADS][[*COMMANDS].index(command) % 2 :: 2]
    assert len(half) >= 60
    for payload in half:
        _acts_not(workplace, capfd, command, payload)


def _acts_not(workplace, capfd, command, payload):
    change, words = PAYLOADS[payload]
    if command == "of a file" and payload in ("cut in a line", "empty"):
        command = "evaluate"  # of a file of one's own, the last line need not end
    write("RUN/config.yaml", change())
    said = refused(COMMANDS[command], capfd, workplace)
    assert "RUN/config.yaml" in said
    for word in words:
        assert word in said, said


def test_every_entry_is_needed_where_a_model_is_built(workplace, capfd):
    for kind in ("schedule", "network", "sampler"):
        write("RUN/config.yaml", without(kind)())
        assert f"RUN/config.yaml: it must be a run's configuration and has no {kind}" in refused(
            COMMANDS["evaluate"], capfd, workplace
        )


def test_a_file_cut_at_any_line_is_never_believed_to_be_another_run():
    whole = (OLD / "config.yaml").read_text().splitlines(keepends=True)
    config = read_config(Path("RUN"))
    for count in range(len(whole)):
        write("RUN/config.yaml", "".join(whole[:count]))
        try:
            read = read_config(Path("RUN"), building=True)
        except ValueError as error:
            assert "RUN/config.yaml" in str(error)  # noqa: PT017
        else:
            assert read["train"]["seed"] == config["train"]["seed"]


def test_the_part_of_a_plugin_that_is_missing_is_named(capfd, workplace):
    write("RUN/config.yaml", at("schedule/_target_", "diffkit_nowhere.schedules.Steep")())
    said = refused(COMMANDS["evaluate"], capfd, workplace)
    assert "RUN/config.yaml: schedule is 'diffkit_nowhere.schedules.Steep', of the package" in said
    assert "which is not installed" in said
    main(["report", "RUN"])  # builds nothing, and so shows the name
    assert "Steep" in Path("report.md").read_text()


def test_resolvers_are_off(monkeypatch):
    monkeypatch.setenv("SECRET", "told")
    config = copy.deepcopy(stored())
    config["data"] = {"_target_": "diffkit.data.arrays.ArrayData", "path": "${oc.env:SECRET}.npy"}
    with pytest.raises(FileNotFoundError, match=r"\$\{oc.env:SECRET\}"):
        make(checked(config)["data"])


def test_public_names_of_registered_parts_are_found():
    assert make({"_target_": "diffkit.Cosine", "logsnr_min": -4.0}) == dk.Cosine(logsnr_min=-4.0)
    assert make({"_target_": "diffkit.schedules.Cosine", "_partial_": True}).func is dk.Cosine
    assert dk.registry.located("diffkit.plugins.Cosine") is None
    assert dk.registry.located("Cosine") is None
    assert dk.registry.located(dk.registry._STATE.parts["preset"]["vdm"].origin) is None  # no constructor


def test_what_a_plugin_allows(own_registry, monkeypatch):
    monkeypatch.setattr(dk.registry, "_ALLOWED", dict(dk.registry._ALLOWED))

    @dk.registry.register("grid", "with_inner")
    class WithInner(dk.grids.AbstractGrid):
        inner: object = None
        own: dk.TrainConfig | None = None

        def __call__(self, schedule, steps):
            raise NotImplementedError

    def inner(x: int = 1):
        return ("made", x)

    name = f"{inner.__module__}.{inner.__qualname__}"
    path = f"{WithInner.__module__}.{WithInner.__qualname__}"
    node = {"_target_": path, "inner": {"_target_": name, "x": 3}}
    with pytest.raises(ValueError, match=r"inner\._target_ must be a registered part"):
        make(node)
    dk.registry.allow(inner)
    assert make(node).inner == ("made", 3)
    with pytest.raises(ValueError, match=r"grid.inner.x must be int, got 'a'"):
        make({"_target_": path, "inner": {"_target_": name, "x": "a"}})
    # A dataclass that an option is annotated with.
    settings = {"_target_": "diffkit.training.config.TrainConfig", "steps": 5}
    assert make({"_target_": path, "own": settings}).own == dk.TrainConfig(steps=5)
    with pytest.raises(ValueError, match="value must be a class or a function"):
        dk.registry.allow(functools.partial(inner))


def test_annotations():
    for value, hint in ((1, float), (None, int | None), ([1, 2], tuple[int, ...]), ("a", os.PathLike[str])):
        assert fits(value, hint)
    for value, hint in ((True, int), (1.0, int), ([1, "a"], tuple[int, ...]), ([1], tuple[int, int])):
        assert not fits(value, hint)
    for kind in ("schedule", "network", "weighting", "sampler", "optimiser", "decoder", "grid"):
        for name in dk.available(kind):
            part = dk.get(kind, name)
            check_node(
                {"_target_": f"{part.__module__}.{part.__qualname__}"}, kind, kind=kind, building=True
            )


# --- records and arrays -------------------------------------------------------------------------

GOOD = json.loads((OLD / "evaluation.json").read_text())
RECORDS = {
    "cut": (b'{"total', "must be a JSON file"),
    "empty": (b"", "must be a JSON file"),
    "not UTF-8": (b"\xff\xfe", "it is not UTF-8"),
    "a list": (b"[]", "must hold a JSON object, got []"),
    "deep": (b"[" * 100_000, "must be a JSON file"),
    "large": (b" " * (LARGEST + 1), "must have at most"),
    "missing": (b"{}", "it has no total_bits_per_dim"),
    **{
        f"{name} {value!r}": (json.dumps(GOOD | {name: value}).encode(), f"{name} must be {must}")
        for name, value, must in (
            ("total_bits_per_dim", "<script>", "a number, got '<script>'"),
            ("prior_bits_per_dim", [1], "a number"),
            ("total_standard_error", "small", "a number"),
            ("prior_standard_error", {}, "a number"),
            ("examples", 1.5, "a positive whole number"),
            ("examples", True, "a positive whole number"),
            ("examples", 0, "a positive whole number"),
            ("steps", "many", "a positive whole number or null"),
            ("steps", -1, "a positive whole number or null"),
            ("at_steps", 5, "a list"),
            ("at_steps", [5], "a list"),
            ("at_steps", [{"steps": "x"}], "a"),
            ("at_steps", [{"steps": 5, "total_bits_per_dim": "x"}], "a"),
            ("at_steps", [{"steps": n + 1} for n in range(101)], "a list of at most 100"),
        )
        if name != "at_steps"
    },
    "at_steps 5": (json.dumps(GOOD | {"at_steps": 5}).encode(), "at_steps must be a list"),
    "at_steps [5]": (json.dumps(GOOD | {"at_steps": [5]}).encode(), r"at_steps[0] must be an object"),
    "at_steps of words": (
        json.dumps(GOOD | {"at_steps": [{"steps": 5, "total_bits_per_dim": "x"}]}).encode(),
        "at_steps[0].total_bits_per_dim must be a number, got 'x'",
    ),
    "many at_steps": (
        json.dumps(GOOD | {"at_steps": [{"steps": n + 1} for n in range(101)]}).encode(),
        "a list of at most 100",
    ),
    "a number without end": (b'{"total_bits_per_dim": ' + b"1" * 5000 + b"}", "must be a JSON file"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_evaluation_is_named(name):
    content, words = RECORDS[name]
    write("RUN/evaluation.json", content)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        dk.report("RUN")
    assert "RUN/evaluation.json" in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path("report.md").exists()


def test_damaged_records_are_one_line_on_the_command_line(workplace, capfd):
    write("RUN/evaluation.json", b"[1]")
    assert "RUN/evaluation.json must hold a JSON object" in refused(["report", "RUN"], capfd, workplace)
    write("RUN/evaluation.json", json.dumps(GOOD))
    write("RUN/variance.json", '{"variance": 1, "batch_variance": "x", "batch_size": 3}')
    assert "RUN/variance.json: batch_variance must be a number" in refused(
        ["report", "RUN"], capfd, workplace
    )
    os.unlink("RUN/variance.json")
    os.mkfifo("RUN/variance.json")
    assert "RUN/variance.json must be a file" in refused(["report", "RUN"], capfd, workplace)
    os.unlink("RUN/variance.json")
    os.unlink("RUN/config.yaml")
    os.symlink("/dev/zero", "RUN/config.yaml")
    assert "RUN/config.yaml must be a file" in refused(["report", "RUN"], capfd, workplace)


def header(shape, descr="|u1", order=False):
    words = repr({"descr": descr, "fortran_order": order, "shape": shape}).encode()
    words += b" " * (-(len(words) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(words).to_bytes(2, "little") + words


def _pickled():
    file = Path("objects.npy")
    np.save(file, np.array([print], dtype=object), allow_pickle=True)
    content = file.read_bytes()
    file.unlink()
    return content


@pytest.mark.parametrize(
    "content",
    [
        lambda: b"no array",
        lambda: b"",
        _pickled,
        lambda: header((10**12, 1, 8, 8)) + b"\0" * 64,
        lambda: header((2**62, 2**62)) + b"\0" * 64,
        lambda: header((-1, 2)) + b"\0" * 64,
        lambda: header((4, 2), "<f8") + np.full(8, np.nan).tobytes(),
        lambda: header((4, 2), "<f8") + np.full(8, 1e300).tobytes(),
        lambda: header((4, 2), "<c8") + b"\0" * 64,
        lambda: header((4, 2), "|O") + b"\0" * 64,
        lambda: header((2, 2), [("a", "<f4"), ("b", "<f4")]) + b"\0" * 32,
        lambda: header((1, 1, 5000, 1)) + b"\0" * 5000,
        lambda: b"PK\x05\x06" + b"\0" * 18,
    ],
)
def test_samples_that_lie_are_named(content):
    write("RUN/samples.npy", content())
    with pytest.raises(ValueError, match=r"^RUN/samples.npy must be an array of samples: ") as error:
        dk.report("RUN")
    assert "\n" not in str(error.value)


def test_nothing_unpickles():
    root = Path(dk.__file__).parents[1]
    files = [*root.glob("diffkit/**/*.py"), *root.glob("plugins/*/diffkit_*/**/*.py")]
    assert len(files) > 100
    for file in files:
        source = file.read_text()
        assert "allow_pickle=True" not in source, file
        assert not re.search(r"\b(?:unsafe_load|full_load|FullLoader|UnsafeLoader|dill)\b", source), file
        assert not re.search(r"yaml\.(?:load|safe_load)\(", source), file
        for call in re.findall(r"np\.load\((?!\.\.\.)[^)]*\)", source):
            assert "allow_pickle=False" in call, file
        if file.name != "cifar.py":  # whose unpickler refuses all names but those of arrays
            assert not re.search(r"^\s*(?:import|from) (?:pickle|marshal|shelve)\b", source, re.M), file


# --- links --------------------------------------------------------------------------------------


@pytest.fixture
def victim(workplace):
    """A file and a folder outside of the run, as they were at the end too."""
    (workplace / "home").mkdir()
    (workplace / "home" / "precious").write_text("kept")
    (workplace / "home" / "folder").mkdir()
    before = everything(workplace / "home")
    yield workplace / "home" / "precious"
    assert everything(workplace / "home") == before


def test_writing_replaces_a_link_and_not_what_it_points_at(victim):
    for name in ("config.yaml.new", "new", "plain"):
        os.symlink(victim, name)
    replace_text(Path("plain"), "mine")
    assert Path("plain").read_text() == "mine"
    assert not Path("plain").is_symlink()
    os.symlink("nowhere", "dangling")
    with new_file("dangling") as file:
        file.write(b"mine")
    assert not Path("nowhere").exists()
    # On an error, what was there stays, and nothing else.
    names = sorted(os.listdir())
    with pytest.raises(TypeError), new_file("plain") as file:
        file.write(b"half" + file.write(b"half"))
    assert Path("plain").read_text() == "mine"
    assert sorted(os.listdir()) == names
    with pytest.raises(OSError, match="nowhere/file"), new_file("nowhere/file"):
        pass


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
@pytest.mark.parametrize("inside", [False, True])
def test_training_goes_through_no_link(victim, name, inside):
    shutil.rmtree("RUN/checkpoints")
    place = Path("RUN") / name
    if inside:
        place.mkdir()
        place = place / "5"
    place.symlink_to(victim.parent / "folder")
    config = (Path("RUN") / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match=f"RUN/{name}.* is a symbolic link, and nothing is written"):
        write_config(Path("RUN"), checked(stored()))
    assert (Path("RUN") / "config.yaml").read_bytes() == config


def test_what_could_not_be_read_again_is_not_written(monkeypatch):
    monkeypatch.setattr("diffkit.configs.LARGEST", 4096)
    for place, value, words in (
        ("network/dtype", "a\x1bb", "the new configuration: network.dtype must be a text"),
        ("data/points", 2.5, "data.points must be int"),
        ("network", {"_python_": "mine.Net", "content": ["x" * 4000]}, "must have at most"),
    ):
        with pytest.raises(ValueError, match=words):
            write_config(Path("new"), yaml.safe_load(at(place, value)()))
        assert not Path("new").exists()


def test_the_files_of_a_run_are_not_written_through_links(victim):
    run = Path("run")
    run.mkdir()
    for name in ("config.yaml", "config.yaml.new", "samples.png"):
        (run / name).symlink_to("nowhere" if name == "config.yaml" else victim)
    with pytest.raises((ValueError, FileNotFoundError), match=r"run/config\.yaml"):
        write_config(run, checked(stored()))  # it would be read
    (run / "config.yaml").unlink()
    write_config(run, checked(stored()))
    for name in ("metrics.jsonl", "metrics.jsonl.new"):
        (run / name).symlink_to(victim)
    save_samples(np.zeros((4, 1, 5, 5), np.uint8), run / "samples.png", levels=2)
    assert not (run / "samples.png").is_symlink()
    with contextlib.suppress(ValueError):  # or it is refused
        JsonLines(run / "metrics.jsonl", step=0).close()


def test_a_report_is_not_written_through_links(victim):
    np.save("RUN/samples.npy", np.zeros((4, 2)))
    for name in ("report.md", "report.md.new", "report_curves.png", "report_samples.png"):
        os.symlink(victim, name)
    dk.report("RUN")
    assert Path("report.md").read_text().startswith("# Report")


def test_samples_are_not_written_through_links(victim, capfd):
    for name in ("samples_ddim_1.npy", "samples_ddim_1.png"):
        os.symlink(victim, f"RUN/{name}")
    with contextlib.suppress(SystemExit):  # refused, as something is there
        main(["sample", "RUN", "sampler=ddim", "count=2", "steps=1"])


def test_a_run_is_not_converted_through_links(victim, workplace, capfd):
    os.symlink(victim.parent / "new", "converted")
    said = refused(COMMANDS["convert"], capfd, workplace)
    assert "out must be a new directory, there is something at converted" in said
    os.unlink("converted")
    os.symlink(victim, "RUN/checkpoints/20/link")
    said = refused(COMMANDS["convert"], capfd, workplace)
    assert "link" in said


def test_writers_use_the_one_mechanism():
    root = Path(dk.__file__).parents[1]
    found = set()
    for file in (*root.glob("diffkit/**/*.py"), *root.glob("plugins/*/diffkit_*/**/*.py")):
        for line in file.read_text().splitlines():
            if re.search(r"\.savefig\(|\.write_(?:text|bytes)\(|np\.save\w*\(|open\([^)]*\"[wa]b?\"", line):
                found.add((file.name, line.strip()))
    # Into a file of `new_file`; into a file that was just made by it; and into new directories.
    found -= {
        ("figures.py", 'figure.savefig(file, format="png")'),
        ("commands.py", "np.save(file, np.asarray(jnp.asarray(drawn), dtype=width))"),
        ("metrics.py", 'self._file = path.open("a", buffering=1)  # writes each line at once'),
    }
    assert {name for name, _ in found} <= {"checkpoints.py", "manifests.py", "nonfinite.py"}, found


# --- reports ------------------------------------------------------------------------------------

HOSTILE = [
    "```\n<script>alert(1)</script>\n```",
    "`<script>alert(1)</script>`",
    "x\\|<script>alert(1)</script>",
    "a|b|<img src=x onerror=alert(1)>",
    "</code></summary></details><script>alert(1)</script>",
    "[click](javascript:alert(1)) ![x](http://evil)",
    "~~~\n<script>alert(1)</script>",
    "``` `` ` <b>",
    "&lt;script&gt; <!-- ",
    "\n\n# Title\n\n<script>alert(1)</script>\n\n",
    r"$\frac{$ $\nothing$ $$ \$",
    "_hidden 汉字 ☃",
]


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = set()

    def handle_starttag(self, tag, attributes):
        self.found.add(tag)
        assert not [name for name, _ in attributes if name.startswith("on")]
        for name, value in attributes:
            assert name not in ("href", "src") or value.startswith("report_"), value


def run_with(name, path, seed=0, **train):
    """A run directory whose data are at a path."""
    shutil.copytree("RUN", name)
    config = copy.deepcopy(stored())
    config["data"] = {"_target_": "diffkit.data.arrays.ArrayData", "_partial_": False, "path": path}
    config["train"] |= {"seed": seed} | train
    Path(name, "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("together", [False, True], ids=["differs", "common"])
def test_a_report_is_text_whatever_settings_and_names_hold(together, capsys):
    markdown = pytest.importorskip("markdown")
    names = []
    for index, text in enumerate(HOSTILE):
        # No name of a file has a slash or a NUL.
        names.append(f"{index}{text}".replace("/", "∕"))
        value = "\n".join(HOSTILE) if together else text
        run_with(names[-1], value, seed=index if together else 0)
    Path(names[-1], "evaluation.json").unlink()
    os.rename(names[-1], "not \x1b[2J finished \udcff")
    names[-1] = "not \x1b[2J finished \udcff"
    made = dk.report(names)
    page = made.path.read_text()
    html = markdown.markdown(page, extensions=["tables", "fenced_code", "md_in_html", "attr_list"])
    tags = Tags()
    tags.feed(html)
    assert tags.found <= {
        *("h1", "h2", "p", "pre", "code", "table", "thead", "tbody", "tr", "th", "td"),
        *("ul", "li", "strong", "em", "details", "summary", "img"),
    }
    # Outside of code no markup is left, for any reader of Markdown.
    bare = re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", page)
    bare = re.sub(r"`[^`\n]*`|<code>[^<\n]*</code>", "", bare)
    assert not re.search(r"<(?!/?(?:details|summary)>)", bare)
    made.show()
    assert r"not \x1b[2J finished \udcff" in capsys.readouterr().out


def test_curves_of_any_numbers(capsys):
    values = [1e308, -1e308, 1e-320, 0.0, float("nan"), 10**40, 3.0]
    for name, seed in (("a", 0), ("b", 1)):
        run_with(name, "x", seed=seed)
        lines = [json.dumps({"step": step, "loss": v, "seconds": v}) for step, v in enumerate(values)]
        Path(name, "metrics.jsonl").write_text("\n".join(lines) + "\n")
    record = GOOD | {"total_bits_per_dim": 1e308, "prior_bits_per_dim": -1e308}
    Path("a", "evaluation.json").write_text(json.dumps(record))
    dk.report(["a", "b"]).show()
    assert Path("report_curves.png").exists()


def test_labels_in_figures(monkeypatch):
    import matplotlib

    # The style of somebody who sets all text by LaTeX, which would obey it.
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    monkeypatch.setenv("PATH", "")
    run_with("latex", r"\input{/etc/passwd}")
    dk.report("latex")
    assert Path("report_curves.png").exists()
    assert plain_label("$a$") == r"\$a\$"
    assert not plain_label("_a").startswith("_")
    assert plain_label("a\x1b\udcff") == r"a\x1b\udcff"
    assert len(plain_label("x" * 10_000)) < 400


# --- plugins ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("../evil", "a/b", "/tmp/evil", "..", ".", "", "a-b", "class", "import", "Evil", "1a", "a\nb"),
        *("a b", "ü", "a" * 65, "a__b", "_a", "a_", "$name", "a.b", "~a"),
    ],
)
def test_a_plugin_with_a_bad_name_is_not_begun(workplace, capfd, name):
    before = everything(workplace)
    with pytest.raises(SystemExit) as stopped:
        main(["new-plugin", "--", name])
    assert stopped.value.code == 2
    assert "NAME must be a lower-case identifier" in capfd.readouterr().err
    assert everything(workplace) == before


@pytest.mark.parametrize("kind", ["folder", "file", "link", "dangling"])
def test_a_plugin_is_begun_in_a_new_folder(victim, workplace, capfd, kind):
    place = workplace / "fine"
    {
        "folder": place.mkdir,
        "file": place.touch,
        "link": lambda: place.symlink_to(victim.parent / "folder"),
        "dangling": lambda: place.symlink_to(victim.parent / "new"),
    }[kind]()
    before = everything(workplace)
    with pytest.raises(SystemExit) as stopped:
        main(["new-plugin", "fine"])
    assert stopped.value.code == 2
    assert "fine exists already" in capfd.readouterr().err
    assert everything(workplace) == before


# --- bits-back files ----------------------------------------------------------------------------


def test_compressed_images_stay_in_a_new_folder(victim, workplace):
    if importlib.util.find_spec("diffkit_bitsback") is None:
        pytest.skip("the plugin is not installed")
    from diffkit_bitsback.errors import DamagedFile
    from diffkit_bitsback.images import new_folder, write_images

    image = np.zeros((1, 1, 4, 4), np.uint8)
    before = everything(workplace)
    for name in ("../x.png", "/x.png", "a/../../x.png", "x", "con.png", "a//x.png", "a\\x.png", "\0.png"):
        with pytest.raises(DamagedFile), new_folder(workplace / "out") as place:
            write_images(place, image, (name,))
        assert everything(workplace) == before
    os.symlink(victim.parent / "folder", "out")
    with pytest.raises(FileExistsError), new_folder(workplace / "out"):
        pass
    os.unlink("out")
    os.symlink(victim.parent / "new", "out")
    with pytest.raises(OSError), new_folder(workplace / "out") as place:
        write_images(place, image, ("x.png",))


# --- anything -----------------------------------------------------------------------------------

# With words that mean something.
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["os.system", "evil.act", "diffkit.Cosine", "???", "${x}", "hydra_zen.funcs.get_obj"])
)
KEYS = st.text(max_size=8) | st.sampled_from(
    ["_target_", "_partial_", "_args_", "_python_", "content", "path", "steps", "seed"]
)
PLAIN = st.deferred(lambda: VALUES | st.lists(PLAIN, max_size=3) | st.dictionaries(KEYS, PLAIN, max_size=3))


def places(tree, prefix=()):
    """Every place in a tree of mappings and lists."""
    yield prefix
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, item in inside:
        yield from places(item, (*prefix, key))


@st.composite
def changed(draw):
    """The configuration with up to three values replaced, removed or added."""
    config = copy.deepcopy(stored())
    for _ in range(draw(st.integers(1, 3))):
        *inside, last = draw(st.sampled_from([place for place in places(config) if place]))
        node = config
        for key in inside:
            node = node[key]
        what = draw(st.sampled_from(["replace", "remove", "add"]))
        if what == "remove" and isinstance(node, dict):
            del node[last]
        elif what == "add" and isinstance(node, dict):
            node[draw(st.text(max_size=6) | st.sampled_from(["_target_", "transport", "path"]))] = draw(
                PLAIN
            )
        else:
            node[last] = draw(PLAIN)
    return config


def _named(config, where):
    """A configuration is read and its parts are prepared, or refused in one line that names the place."""
    try:
        preset_of(checked(config, where))
    except (ValueError, ModuleNotFoundError) as error:
        said = str(error)
        assert "\n" not in said
        assert len(said) < 2000
    assert "evil" not in sys.modules


def _any_bytes(content):
    write("RUN/config.yaml", content)
    try:
        config = read_config(Path("RUN"))
    except ValueError as error:
        assert "RUN/config.yaml" in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
    else:
        _named(config, "RUN/config.yaml: ")


@st.composite
def damaged(draw, content):
    """Bytes of a file with some replaced, removed or added."""
    made = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        first = draw(st.integers(0, len(made)))
        last = draw(st.integers(first, min(len(made), first + 40)))
        made[first:last] = draw(
            st.binary(max_size=8) | st.sampled_from([b"&a ", b"*a", b"{", b"- ", b"_target_: os.system"])
        )
    return bytes(made)


def _any_record(content):
    write("RUN/evaluation.json", content)
    for read in (
        read_evaluation,
        functools.partial(read_record, numbers=("variance",), counts=("batch_size",)),
    ):
        try:
            read(Path("RUN/evaluation.json"))
        except ValueError as error:
            assert "RUN/evaluation.json" in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017


SHORT = """schedule:
  _target_: diffkit.Cosine
  _partial_: true
  logsnr_min: -5.0
data:
  _target_: diffkit.data.swirl.Swirl
  points: 64
train:
  steps: 20
  seed: 0
evaluate_steps: [10, null]
"""

FUZZ = {
    "configurations": (changed(), lambda config: _named(config, "")),
    "any values": (PLAIN, lambda config: _named(config, "")),
    "damaged files": (damaged(SHORT.encode()), _any_bytes),
    "any bytes": (
        st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode(errors="ignore")),
        _any_bytes,
    ),
    "records": (
        damaged((OLD / "evaluation.json").read_bytes()) | PLAIN.map(lambda v: json.dumps(v).encode()),
        _any_record,
    ),
}


def _fuzz(name, examples):
    inputs, try_one = FUZZ[name]
    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    settings(hypothesis.given(inputs)(try_one))()


@pytest.mark.parametrize("name", FUZZ)
def test_anything_is_read_or_refused_by_name(name):
    _fuzz(name, 40)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUZZ)
def test_many_things_are_read_or_refused_by_name(name):
    _fuzz(name, known.INPUTS)


def test_reading_takes_time_and_memory_by_the_size_of_the_file():
    worst = {
        "open": "a: [" + "[]," * (LARGEST // 24) + "]\n",
        "keys": "{" + ", ".join(f"k{n}: {n}" for n in range(2_000)) + "}\n",
        "brackets": "[" * (LARGEST - 1) + "\n",
    }
    for text in worst.values():
        write("RUN/config.yaml", text)
        began = time.process_time()
        with pytest.raises(ValueError, match=r"RUN/config\.yaml"):
            read_config(Path("RUN"))
        assert time.process_time() - began < 2
    assert read_yaml(OLD / "config.yaml") == stored()
    assert read_json(OLD / "evaluation.json") == GOOD
