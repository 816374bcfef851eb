"""What the pages show is true: their Python runs, their commands compose, and nothing public is missing."""

import contextlib
import importlib
import inspect
import itertools
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import diffkit as dk
from diffkit import registry
from diffkit.cli import main
from diffkit.cli.plugins import plugin_commands
from diffkit.cli.settings import COMMANDS
from diffkit.configs import make
from diffkit.presets import CONTEXT

# OmegaConf's containers are generics of the old kind, which beartype remarks on where one is annotated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*MutableMapping.*:beartype.roar.BeartypeDecorHintPep585DeprecationWarning"
)

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FIRST_PARTY = ("diffkit", "vdm", "ddpm", "score_sde", "edm", "flow", "solvers", "bitsback")

# What a command is shortened by where a test runs it for real.
SHORT = ("train.steps=10", "passes=1", "sample_steps=2")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language, those with a title included."""
    return re.findall(rf"^```{language}\b[^\n]*\n(.*?)^```$", page.read_text(), re.M | re.S)


def command_lines(page: Path) -> list[list[str]]:
    """The lines of the page's bash blocks as words, without comments and environment variables."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [list(itertools.dropwhile(lambda w: re.match(r"[A-Z_]+=", w), line)) for line in words]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def documented() -> dict[int, str]:
    """Every object that a page shows, with the page's name, by the identity of the object."""
    found = {}
    for page in PAGES:
        for path in re.findall(r"^\s*::: (\S+)$", page.read_text(), re.M):
            found[id(resolve(path))] = name(page)
    return found


def resolve(path: str) -> Any:
    """The object at a dotted path."""
    parts = path.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for part in parts[split:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"nothing can be imported at {path}")


def own_docstring(thing: Any) -> str:
    """The docstring of a class or function, if a person wrote it and it is not inherited."""
    text = inspect.getdoc(thing) if not inspect.isclass(thing) else thing.__dict__.get("__doc__")
    # A dataclass without a docstring is given its signature as one.
    return "" if text is None or text.startswith(f"{thing.__name__}(") else text


def public_names() -> list[str]:
    members = {n: getattr(dk, n) for n in dir(dk) if not n.startswith("_")}
    return [n for n, thing in members.items() if inspect.isclass(thing) or inspect.isroutine(thing)]


def first_party_parts() -> list[tuple[str, str, str]]:
    """Plugin, kind and name of every part of ours."""
    reports = [report for report in registry.plugins() if report.name in FIRST_PARTY]
    assert {report.name for report in reports} == set(FIRST_PARTY)
    return [
        (report.name, kind, n) for report in reports for kind, names in report.parts.items() for n in names
    ]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; what a page registers is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["diffkit"])  # Hydra's road to its arguments
    registry.available("schedule")  # so that plugins are there before, and stay
    before = {kind: dict(parts) for kind, parts in registry._STATE.parts.items()}
    yield tmp_path
    registry._STATE.parts.update(before)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name)
def test_python_runs(page: Path, workplace: Path) -> None:
    python = blocks(page, "python")
    # The runs that a page's Python loads are those that its commands made.
    for words in command_lines(page):
        run = next((word.removeprefix("run=") for word in words if word.startswith("run=")), None)
        if run is not None and any(f'"{run}"' in block for block in python):
            main([*words[1:], *SHORT])
            if page.name == "getting-started.md":
                assert set(os.listdir(run)) == files_of_a_run(page)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in python:
        exec(compile(block, name(page), "exec"), namespace)


def files_of_a_run(page: Path) -> set[str]:
    """The first column of the page's table of what a run directory holds."""
    rows = page.read_text().partition("## The run directory")[2].partition("\n## ")[0].splitlines()
    cells = [row.split("|")[1] for row in rows if row.startswith("| `")]
    return {n.rstrip("/") for cell in cells for n in re.findall(r"`([^`]+)`", cell)}


def combinations(words: list[str]) -> Iterator[list[str]]:
    """The single commands that `--multirun` stands for."""
    words = [word for word in words if word != "--multirun"]
    values = [
        [f"{key}={value}" for value in text.split(",")] if equals and text[0] != "[" else [word]
        for word in words
        for key, equals, text in [word.partition("=")]
    ]
    return map(list, itertools.product(*values))


DIFFKIT_LINES = [
    pytest.param(words, id=" ".join(words))
    for page in PAGES
    for words in command_lines(page)
    if words[:1] == ["diffkit"]
]


@pytest.mark.parametrize("words", DIFFKIT_LINES)
def test_commands_compose(words: list[str], workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, *arguments = words[1:]
    if command == "check":  # run by `make laws`
        plugins = itertools.takewhile(lambda word: not word.startswith("-"), arguments)
        assert set(plugins) <= {*FIRST_PARTY, "PLUGIN", "my_plugin"}
        return
    if command == "new-plugin":
        assert arguments == ["NAME"] or arguments[0].isidentifier()
        return
    if command == "plugins":
        assert not arguments
        with pytest.raises(SystemExit) as exit_:
            main(["plugins"])
        assert exit_.value.code == 0
        return
    known = COMMANDS.get(command) or plugin_commands()[command].load()
    for single in combinations(arguments):
        capsys.readouterr()
        with contextlib.suppress(SystemExit):  # of a plugin's command
            main([command, *single, "--cfg=job"])
        config = yaml.safe_load(capsys.readouterr().out)
        positional = [argument for argument in single if "=" not in argument]
        for setting in known.positional:
            if setting.endswith("..."):
                assert config[setting[:-3]] == positional
                positional = []
            elif positional:
                assert config[setting] == positional.pop(0)
        assert not positional
        for argument in single:
            key, equals, value = argument.partition("=")
            node: Any = config
            if not equals:
                continue
            if key == "preset":
                assert value in dk.available("preset")
            elif key in registry.KINDS:
                assert node[key]["_target_"].endswith(dk.get(key, value).__qualname__)
            else:
                for part in key.split("."):
                    node = node[part]
                assert node == yaml.safe_load(value) or node == float(value)
        if command == "train":
            make(config["train"])  # refuses values out of range


def test_composition_would_notice(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (
        ["train", "schedule=cosin"],
        ["train", "network.widht=3"],
        ["train", "train.step=5"],
        ["convert", "RUN", "OUT", "sampler=ddim"],
        ["convert", "RUN", "OUT", "TOO_MUCH"],
        ["equivalence", "vdm", "edm", "process=straight"],
        ["compress", "RUN", "IN", "OUT", "stepz=3"],
    ):
        with pytest.raises(SystemExit) as exit_:
            main([*wrong, "--cfg=job"])
        assert exit_.value.code != 0, wrong


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {words[1] for page in PAGES for words in command_lines(page) if words[:1] == ["make"]}
    targets |= {t for page in PAGES for t in re.findall(r"`make (\w+)`", page.read_text())}
    assert {"demo", "test", "check"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {e for page in PAGES for e in re.findall(r"diffkit\[(\w+)\]", page.read_text())}
    assert "vdm" in named
    assert named <= project["optional-dependencies"].keys()


def test_links_lead_somewhere() -> None:
    # Inside docs/ the strict build checks them.
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{link} in {page.name}"


def test_public_names_have_docstrings_and_pages() -> None:
    shown = documented()
    names = public_names()
    assert len(names) > 40
    assert [n for n in names if not own_docstring(getattr(dk, n))] == []
    assert [n for n in names if id(getattr(dk, n)) not in shown] == []


def test_every_kind_has_a_page() -> None:
    for kind in registry.KINDS:
        plural = {"process": "processes", "data": "data"}.get(kind, f"{kind}s")
        assert (DOCS / "api" / f"{plural}.md").exists(), plural


def test_every_part_has_a_docstring_and_a_page() -> None:
    shown = documented()
    for plugin, kind, n in first_party_parts():
        part = registry.get(kind, n)
        if kind == "preset":
            assert f"`{n}`" in (DOCS / "api" / "presets.md").read_text()
            assert f"`{n}`" in (DOCS / "plugins" / f"{plugin}.md").read_text()
        else:
            assert own_docstring(part), f"{kind} {n}"
            assert id(part) in shown, f"{kind} {n}"


def test_table_of_parts_in_the_readme() -> None:
    parts = first_party_parts()
    readme = (ROOT / "README.md").read_text()
    for kind in registry.KINDS:
        names = sorted(n for _, k, n in parts if k == kind)
        assert f"| `{kind}` | {', '.join(f'`{n}`' for n in names)} |\n" in readme


def test_table_of_presets_of_vdm() -> None:
    def choices(preset: dk.Preset) -> dict[str, Any]:
        found: dict[str, Any] = {f"train.{key}": value for key, value in preset.train.items()}
        for kind in ("schedule", "network"):
            found[kind], options = preset.choice(kind)
            found |= {f"{kind}.{key}": value for key, value in options.items()}
        return found

    small, large = (choices(registry.get("preset", n)) for n in ("vdm", "vdm_cifar10"))
    page = (DOCS / "plugins" / "vdm.md").read_text()
    for key in small.keys() | large.keys():
        cells = [f"`{c[key]}`" if key in c else "default" for c in (small, large)]
        assert f"| `{key}` | {cells[0]} | {cells[1]} |\n" in page


def test_context_on_the_pages_is_the_context() -> None:
    text = (DOCS / "api" / "registry.md").read_text()
    named = re.search(r"an argument named (.*?) is filled in", text, re.S)
    assert named is not None
    assert set(re.findall(r"`(\w+)`", named[1])) == set(CONTEXT)


def test_the_tests_of_reliability_exist():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs/reliability.md").read_text())
    assert len(named) > 40
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), (file, test)
