"""`diffkit check` and `diffkit new-plugin`: the laws and a plugin's skeleton, from the command line."""

import functools
from pathlib import Path

import pytest
from wrong_parts import Crooked

import diffkit as dk
from diffkit import registry, testing
from diffkit.cli import main
from diffkit.cli.check import check_plugin
from diffkit.cli.new_plugin import new_plugin, skeleton

EXAMPLE = Path(__file__).parents[1] / "examples" / "custom_plugin"


@pytest.fixture
def crooked_plugin(own_registry):
    """A plugin with one right and one wrong schedule; its name."""
    dk.register("schedule", "wavy")(functools.partial(Crooked, slip="wave"))
    dk.register("schedule", "straight")(Crooked)
    return next(r.name for r in dk.plugins() if "wavy" in r.parts.get("schedule", ()))


def test_check_finds_the_wrong_part(crooked_plugin, capsys):
    assert check_plugin([crooked_plugin]) == 1
    out = capsys.readouterr().out
    table, _, messages = out.partition("schedule 'wavy' breaks the law")
    for one in testing.laws("schedule"):
        assert one.name in table
    assert table.count("failed") == 2  # a wave has no inverse either
    assert "'strictly_decreasing'" in messages
    assert "logsnr(next t) = " in messages
    assert "straight" in table
    assert "2 parts, 12 laws hold, 2 broken, 0 skipped" in messages


def test_check_narrows_to_a_kind_and_a_part(crooked_plugin, capsys):
    assert check_plugin([crooked_plugin, "--part", "straight", "--kind", "schedule"]) == 0
    assert "1 parts, 7 laws hold, 0 broken" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "PLUGIN"),
        (["nothing"], "there is no plugin 'nothing'. Installed: diffkit,"),
        (["diffkit", "--kind", "schedul"], "invalid choice: 'schedul'"),
        (["diffkit", "--part", "cosin"], "no cosin in diffkit. Parts: schedule cosine,"),
    ],
)
def test_check_explains_wrong_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["check", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_check_of_a_plugin_that_does_not_import(own_registry, monkeypatch, capsys):
    failed = registry.PluginReport("limping", "limping", "limping", "1.0", error="Traceback: no module")
    monkeypatch.setitem(registry._STATE.plugins, "limping", failed)
    assert check_plugin(["limping"]) == 1
    assert "plugin 'limping' does not import" in capsys.readouterr().err


def test_check_of_a_plugin_that_brings_commands_only(capsys):
    assert check_plugin(["bitsback"]) == 0
    assert "no parts, and so no laws; commands: compress, decompress, rate" in capsys.readouterr().out
    assert check_plugin(["bitsback", "--kind", "schedule"]) == 2
    assert "no schedule in bitsback. Parts: none" in capsys.readouterr().err


def test_check_some_of_the_core(capsys):
    for kind in ("process", "weighting"):
        assert check_plugin(["diffkit", "--kind", kind]) == 0, capsys.readouterr().out


# The skeleton of a plugin; tests/test_custom_plugin.py installs and runs it.


def test_new_plugin_writes_the_skeleton(tmp_path, capsys):
    folder = tmp_path / "somewhere" / "mine"
    assert new_plugin(["my_lab", "--path", str(folder)]) == 0
    files = {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*") if f.is_file()}
    assert files == skeleton("my_lab")
    assert set(files) == {
        "pyproject.toml",
        "README.md",
        "diffkit_my_lab/__init__.py",
        "diffkit_my_lab/schedules.py",
        "diffkit_my_lab/py.typed",
        "tests/test_laws.py",
    }
    out = capsys.readouterr().out
    assert f"pip install -e {folder}" in out
    assert "diffkit check my_lab" in out
    # Again: nothing is overwritten.
    (folder / "README.md").write_text("mine")
    assert new_plugin(["my_lab", "--path", str(folder)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (folder / "README.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["My_Lab", "my-lab", "2d", "", "a b", "_a", "a_", "../a", "é"])
def test_new_plugin_refuses_other_names(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert new_plugin([name]) == 2
    assert f"NAME must be a lower-case identifier such as 'my_plugin', got {name!r}" in (
        capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())


def test_new_plugin_refuses_the_name_of_a_plugin(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["new-plugin", "vdm"])
    assert stopped.value.code == 2
    assert "there is a plugin 'vdm' already, of the distribution 'diffkit-vdm'" in (capsys.readouterr().err)


def test_the_example_is_the_skeleton_and_more():
    for path, text in skeleton("custom").items():
        rest = iter((EXAMPLE / path).read_text().splitlines())
        for line in text.splitlines():
            assert line in rest, f"{path} has no line {line!r} after the ones before it"


def test_the_page_lists_every_law():
    page = (Path(__file__).parents[1] / "docs" / "api" / "testing.md").read_text()
    listed = " ".join(page.split())
    for kind in registry.KINDS:
        _, _, section = page.partition(f"\n### {kind}\n")
        section = " ".join(section.partition("\n#")[0].split())
        for one in testing.laws(kind):
            common = one.name in ("interface", "options")
            assert (f"`{one.name}`" if common else f"* `{one.name}`: {one.sentence}") in (
                listed if common else section
            )
