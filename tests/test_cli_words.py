"""What is typed is what is meant: paths and names, the jobs of a sweep, and the names of their runs."""

import dataclasses
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from diffkit.cli import Command, main
from diffkit.cli.launch import _checked, _directory, _line, compose
from diffkit.cli.settings import COMMANDS
from diffkit.cli.words import check_sweep, jobs, overrides, parsed, run_name, short, varied
from diffkit.configs import MAY_CHANGE

PATHS = [
    "2024",
    "2024.10",
    "1e3",
    "1_000",
    "inf",
    "nan",
    "true",
    "Null",
    "фото",
    "é",
    "a=b",
    "a,b",
    "x y",
    " x ",
    "pics (1)",
    "it's",
    "'quoted'",
    '"quoted"',
    'say "hi"',
    "a\\b",
    "a\\",
    "\\'",
    "[x]",
    "{x}",
    "{a: 1}",
    "$HOME",
    "${x}",
    "\\${x}",
    "${oc.env:HOME}",
    "${",
    "~x",
    "#1",
    "a;b|c&d",
    "choice(a,b)",
    "glob(*)",
    "-x",
    "+x",
    "a\nb",
    "long/" + "x" * 195,
]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty directory to work in; Hydra's global state is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["diffkit"])
    state = ConfigStore.get_state()
    yield tmp_path
    ConfigStore.set_state(state)
    GlobalHydra.instance().clear()


def settled(given):
    """What Hydra makes of overrides, by their dotted names."""
    config = OmegaConf.create()
    for override in parsed(given):
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    return OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_taken_as_it_is_typed(path):
    train = COMMANDS["train"]
    words = ["data=array", *(f"{n}={path}" for n in ("run", "root", "from", "data.path", "data.test"))]
    found = settled(overrides(train, words))
    assert {found[name] for name in ("run", "root", "from")} == {path}
    assert found["data"]["path"] == found["data"]["test"] == path
    # Without the part's name too, given by position, in a list, and with several jobs.
    assert settled(overrides(train, [f"data.path={path}"]))["data"]["path"] == path
    if not path.startswith("-"):  # which is a flag
        assert settled(overrides(COMMANDS["sample"], [f"out={path}", "./a=b"]))["run"] == "./a=b"
        if "=" not in path:
            assert settled(overrides(COMMANDS["evaluate"], [path, "steps=3"])) == {"run": path, "steps": 3}
            assert settled(overrides(COMMANDS["report"], [path, path]))["runs"] == [path, path]
    if not {"'", '"', ",", "(", " ", "\n"} & {*path}:
        (job,) = jobs(overrides(train, [f"run={path}"], multirun=True))
        assert settled(job)["run"] == path


def test_a_path_reaches_the_configuration_as_it_is_typed():
    names = ["run", "root", "from", "data.path", "data.test", "data.labels"]
    for first in range(0, len(PATHS), len(names)):
        chosen = dict(zip(names, PATHS[first:], strict=False))
        found = compose("train", ["data=array", *(f"{name}={path}" for name, path in chosen.items())])
        for name, path in chosen.items():
            head, _, option = name.partition(".")
            value = found[head][option] if option else found[head]
            # `labels` may also be a yes or no.
            assert value == (True if (name, path) == ("data.labels", "true") else path), name
        # The command's own settings, whose types are checked.
        checked = _checked(COMMANDS["train"].settings, found)
        assert all(checked[name] == path for name, path in chosen.items() if "." not in name)


def test_null_is_no_path_where_there_may_be_none():
    words = ["run=null", "root=null", "data.test=null", "data.labels=true"]
    found = settled(overrides(COMMANDS["train"], words))
    assert found == {"run": None, "root": "null", "data": {"test": None, "labels": True}}
    # By position it is a path.
    assert settled(overrides(COMMANDS["evaluate"], ["null"])) == {"run": "null"}


@dataclasses.dataclass(frozen=True)
class PluginSettings:
    """Settings of a stranger's command, with annotations as text.

    **Arguments:** `place`: a path; `name`: a name; `many`: paths; `number`: a number.
    """

    place: "Path | None" = None
    name: str = "x"
    many: list[str] = dataclasses.field(default_factory=list)
    number: float = 1.0


@pytest.mark.parametrize("path", PATHS)
def test_commands_of_plugins_too(path):
    command = Command("squeeze", lambda given: None, PluginSettings, ("place",))
    found = settled(overrides(command, [f"place={path}", f"name={path}", "number=1e3"]))
    assert found == {"place": path, "name": path, "number": 1000.0}
    if "'" not in path and not path.endswith("\\"):
        listed = settled(overrides(command, [f"many=['{path}',b]"]))
        assert listed == {"many": [path, "b"]}


def test_a_word_with_an_equals_sign_is_a_path_if_it_names_no_setting(workplace):
    evaluate = COMMANDS["evaluate"]
    assert settled(overrides(evaluate, ["runs/lr=0.1"])) == {"run": "runs/lr=0.1"}
    (workplace / "lr=0.1").mkdir()
    assert settled(overrides(evaluate, ["lr=0.1"])) == {"run": "lr=0.1"}
    # A setting stays one, whatever there is.
    (workplace / "steps=3").mkdir()
    assert settled(overrides(evaluate, ["a", "steps=3"])) == {"run": "a", "steps": 3}
    assert settled(overrides(evaluate, ["./steps=3"])) == {"run": "./steps=3"}


def test_what_is_neither_name_nor_path_stays_in_the_grammar_of_hydra():
    words = ["train.steps=1e3", "network.multipliers=[1,2]", "variance=true", "evaluate_steps=[10,null]"]
    found = settled(overrides(COMMANDS["train"], words))
    assert found["train"]["steps"] == 1000
    assert found["network"]["multipliers"] == [1, 2]
    assert found["variance"] is True
    assert found["evaluate_steps"] == [10, None]


def values(word, key):
    """The values of a setting in the jobs of a sweep."""
    return [settled(job)[key] for job in jobs(overrides(COMMANDS["train"], [word], multirun=True))]


def test_a_comma_separates_the_values_of_a_sweep_and_quotes_keep_it():
    assert values("root=a,b", "root") == ["a", "b"]
    assert values("root=2024, 1e3,it's,x y", "root") == ["2024", "1e3", "it's", "x y"]
    assert values("root='a,b',c", "root") == ["a,b", "c"]
    assert values('root="it\'s, or","null"', "root") == ["it's, or", "null"]
    assert values("run=null,null.", "run") == [None, "null."]
    assert [v["decay"] for v in values("train.decay=cosine,linear", "train")] == ["cosine", "linear"]
    assert [v["decay"] for v in values("train.decay=choice(cosine,linear)", "train")] == [
        "cosine",
        "linear",
    ]


def names_of(*words):
    """The names of the runs of a sweep."""
    given = overrides(COMMANDS["train"], words, multirun=True)
    return [run_name(job, varied(given)) for job in jobs(given)]


@pytest.mark.parametrize("setting", MAY_CHANGE)
def test_runs_of_a_sweep_that_differ_have_names_that_differ(setting):
    pair = "[1],[2]" if setting == "evaluate_steps" else "true,false" if setting == "variance" else "8,4"
    one, other = names_of(f"{setting}={pair}")
    assert one != other
    # Alone it may change, and has no part in the name.
    assert names_of(f"{setting}={pair.split(',')[0]}", "schedule=cosine") == ["schedule-cosine"]


@pytest.mark.parametrize(
    "word",
    [
        "data.path=фото,пото",
        "data.path=a b,a-b,a/b,a:b",
        "data.path='a,b',a-b",
        "network.fourier=[],[6],[6,7]",
        "network.fourier=[[6],7],[6,7]",
        "+network.x={a:1},{a:2}",
        "train.learning_rate=1e-3,1e3,1e-30",
        f"data.path={'x' * 300}a,{'x' * 300}b",
        f"data.path={'é' * 300}a,{'é' * 300}b",
    ],
)
def test_names_differ_also_where_a_name_cannot_have_the_signs(word):
    names = names_of("data=array", word)
    assert len(set(names)) == len(names) > 1
    for name in names:
        assert len(name) <= 210
        assert set(name) <= {*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"}


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "default"),
        (["train.steps=8", "samples=0"], "default"),
        (["schedule=cosine", "data=digits"], "data-digits_schedule-cosine"),
        (["network.multipliers=[1,2]"], "network.multipliers-1-2-"),
        (["data=idx", "data.path=sets/mnist"], "data.path-sets-mnist_data-idx"),
        (["data.path=my pictures"], "data.path-my-pictures"),
        (["train.learning_rate=1e-3"], "train.learning_rate-1e-3"),
        (["data.path=" + "x" * 300], "data.path-" + "x" * 170 + "-fd653de9bd37"),
    ],
)
def test_a_single_run_has_the_name_that_it_always_had(words, name):
    assert run_name(overrides(COMMANDS["train"], words)) == name


def test_the_directory_of_an_older_version_is_found(workplace):
    given = overrides(COMMANDS["train"], ["train.steps=8"])
    plain = compose("train", ["train.steps=8"]) | {"root": "runs"}
    names = ("train.steps",)
    assert _directory(plain, given, names) == "runs/train.steps-8"
    stored = {k: v for k, v in plain.items() if k not in ("run", "root", "from")}
    (workplace / "runs/default").mkdir(parents=True)
    (workplace / "runs/default/config.yaml").write_text(yaml.safe_dump(stored))
    assert _directory(plain, given, names) == "runs/default"
    # Not that of another run, nor what cannot be read.
    other = plain | {"train": {**plain["train"], "steps": 4}}
    assert _directory(other, given, names) == "runs/train.steps-8"
    (workplace / "runs/default/config.yaml").write_text("train: [")
    assert _directory(plain, given, names) == "runs/train.steps-8"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.seed=1,1"], "would write the same run, runs/train.seed-1: give each value only once"),
        (["schedule=cosine,linear_logsnr", "run=r"], "run, r: give root=DIR in place of run=DIR"),
        (["run=r,./r/"], "run, ./r/: give root=DIR"),
        (["train.seed=1,2", "run=a,b"], "the same run, "),
        (["root=a,a/"], "the same run, a/"),
        (["data.path=2024,'2024'", "data=array"], "give each value only once"),
    ],
)
def test_jobs_that_would_share_a_run_are_refused(words, said):
    given = overrides(COMMANDS["train"], words, multirun=True)
    with pytest.raises(ValueError) as error:
        check_sweep(given, "runs")
    assert said in str(error.value)


def test_jobs_apart_are_not_refused():
    for words in (["train.steps=8,4"], ["run=a,b"], ["root=a,b"], ["samples=1,2", "schedule=cosine"]):
        check_sweep(overrides(COMMANDS["train"], words, multirun=True), "runs")


def test_a_sweep_that_would_share_a_run_starts_none_of_them(workplace, capfd):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--multirun", "train.seed=0,1,0", "network=mlp"])
    assert stopped.value.code == 1
    assert capfd.readouterr().err == (
        "diffkit train: two jobs of this sweep would write the same run, "
        "runs/network-mlp_train.seed-0: give each value only once.\n"
    )
    assert not any(workplace.iterdir())


@pytest.mark.parametrize("run", ["2024.10", "it's", "${x}", "фото", "a,b"])
def test_an_error_names_the_run_as_it_was_typed(run, capfd):
    for words in ([run], [f"run={run}"]):
        with pytest.raises(SystemExit):
            main(["evaluate", *words])
        said = f"diffkit evaluate: path must be a run directory, there is nothing at {run}.\n"
        assert capfd.readouterr().err == said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "train.steps=(1"], "'train.steps=(1' cannot be read"),
        (["train", "network=mlp", "network.width=wide"], "width"),
        (["train", "network=mlp", "network.width=1.5"], "width"),
        (["train", "data=array", "data.path=a\nb.npy"], "a\\nb.npy"),
        (["evaluate", "steps"], "there is nothing at steps"),
        (["train", "run="], "run must be a path, got nothing"),
        (["train", "train.seed=1,2"], "train.seed=1,2 has several values"),
    ],
)
def test_an_error_is_one_line(workplace, capfd, words, said):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 1
    err = capfd.readouterr().err
    assert err.startswith(f"diffkit {words[0]}: ")
    assert err.count("\n") == 1
    assert said in err


def test_the_line_of_an_error():
    assert _line("a\n  b\r\n\nc ") == "a b c"
    assert _line("\x1b[31mred\x1b[0m\x07\udcff") == "red\\x07\\udcff"
    assert len(_line("x" * 10_000)) == 2000
    assert short("a b") == "a-b"
