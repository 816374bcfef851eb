"""The registry: names, kinds, and plugins that work, fail or clash."""

import os
import string
import subprocess
import sys
import textwrap

import hypothesis
import pytest
from hypothesis import strategies as st

import diffkit as dk
from diffkit import registry
from diffkit.cli import main
from diffkit.registry import (
    DuplicatePartError,
    PluginWarning,
    RegistryError,
    UnknownKindError,
    UnknownPartError,
)


@pytest.fixture
def fresh(monkeypatch):
    """A registry of its own, with the parts of the core and no plugin looked for yet."""
    # The installed plugins register once, in the real registry, when they are first imported.
    dk.plugins()
    state = registry._State()
    for kind, parts in registry._STATE.parts.items():
        state.parts[kind] = {n: part for n, part in parts.items() if part.plugin == "diffkit"}
    monkeypatch.setattr(registry, "_STATE", state)
    return state


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that writes a distribution with one plugin, as pip would install it."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, source, *, plugin=None, module=None):
        module = module or f"{name}_module"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[diffkit.plugins]\n{plugin or name} = {module}\n")
        return tmp_path

    yield write
    for module in [name for name, m in sys.modules.items() if _lies_in(m, tmp_path)]:
        del sys.modules[module]


def _lies_in(module, folder):
    return str(getattr(module, "__file__", None) or "").startswith(str(folder))


def report(name):
    return next(found for found in dk.plugins() if found.name == name)


class TestNames:
    def test_round_trip(self, fresh):
        @dk.register("schedule", "steep")
        class Steep:
            pass

        assert dk.get("schedule", "steep") is Steep
        assert "steep" in dk.available("schedule")
        assert "steep" not in dk.available("sampler")
        assert registry.name_of("schedule", Steep) == "steep"
        assert registry.name_of("schedule", Steep()) == "steep"
        assert registry.name_of("sampler", Steep) is None

    # The fixture's registry may serve all examples: each clears the kind that it uses.
    @hypothesis.settings(
        deadline=None,
        derandomize=True,
        suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
    )
    @hypothesis.given(
        parts=st.dictionaries(
            st.from_regex(r"[a-z_][a-z0-9_]{0,20}", fullmatch=True), st.integers(), min_size=1
        ),
        kind=st.sampled_from(registry.KINDS),
    )
    def test_what_is_registered_is_what_is_got(self, fresh, parts, kind):
        dk.available(kind)
        fresh.parts[kind] = {}
        for name, value in parts.items():
            assert dk.register(kind, name)(value) == value
        assert dk.available(kind) == tuple(sorted(parts))
        assert {name: dk.get(kind, name) for name in dk.available(kind)} == parts
        assert all(dk.get(kind, name) is value for name, value in parts.items())

    @hypothesis.settings(derandomize=True)
    @hypothesis.given(st.text(alphabet=string.printable))
    def test_a_name_is_a_lower_case_identifier_or_refused(self, name):
        if not (name.isidentifier() and name == name.lower()):
            with pytest.raises(ValueError, match="must be a lower-case identifier"):
                dk.register("schedule", name)

    def test_twice_names_both(self, fresh):
        @dk.register("schedule", "steep")
        class First:
            pass

        with pytest.raises(DuplicatePartError, match=r"'steep' .*\.First .*\.Second\. Rename"):

            @dk.register("schedule", "steep")
            class Second:
                pass

        assert dk.get("schedule", "steep") is First
        with pytest.raises(DuplicatePartError, match=r"diffkit\.schedules\.Cosine \(plugin 'diffkit'"):
            dk.register("schedule", "cosine")(First)

    def test_the_same_definition_again_replaces_itself(self, fresh):
        def define():
            @dk.register("schedule", "steep")
            class Steep:
                pass

            return Steep

        first, second = define(), define()
        assert first is not second
        assert dk.get("schedule", "steep") is second

    def test_instances_from_two_modules_clash(self, fresh):
        # Presets are instances of one class: what tells them apart is where they were registered.
        source = "import diffkit as dk\ndk.register('preset', 'mine')(dk.Preset(schedule={!r}))"
        exec(source.format("cosine"), {"__name__": "one.presets"})
        exec(source.format("linear_logsnr"), {"__name__": "one.presets"})
        assert dk.get("preset", "mine").schedule == "linear_logsnr"
        with pytest.raises(DuplicatePartError, match=r"one\.presets .*two\.presets"):
            exec(source.format("cosine"), {"__name__": "two.presets"})

    def test_unknown_name(self):
        with pytest.raises(UnknownPartError, match=r"no schedule 'cosin'\. Did you mean 'cosine'\?"):
            dk.get("schedule", "cosin")
        with pytest.raises(UnknownPartError, match=r"Available: .*cosine, .*linear_logsnr"):
            dk.get("schedule", "zzz")

    @pytest.mark.parametrize(
        "call",
        [
            lambda kind: dk.get(kind, "cosine"),
            lambda kind: dk.available(kind),
            lambda kind: dk.register(kind, "cosine"),
            lambda kind: registry.name_of(kind, dk.Cosine),
        ],
    )
    def test_unknown_kind(self, call):
        with pytest.raises(UnknownKindError, match=r"Did you mean 'schedule'\? The kinds are: sche"):
            call("schedul")

    def test_errors_share_a_base(self):
        assert issubclass(RegistryError, LookupError)
        for error in (UnknownKindError, UnknownPartError, DuplicatePartError):
            assert issubclass(error, RegistryError)


GOOD = """
    import diffkit as dk

    @dk.register("schedule", "good")
    class Good(dk.LinearLogSNR.__base__):
        pass

    dk.register("preset", "good")(dk.Preset())
"""

BAD = """
    import diffkit as dk

    @dk.register("schedule", "half")
    class Half(dk.AbstractSchedule):
        pass

    raise RuntimeError("the dog ate it")
"""


class TestPlugins:
    def test_a_plugin_is_found(self, fresh, install):
        install("good", GOOD)
        assert "good" in dk.available("schedule")
        found = report("good")
        assert (found.module, found.distribution, found.version) == ("good_module", "good", "1.0")
        assert found.parts == {"schedule": ("good",), "preset": ("good",)}
        assert found.error is None

    def test_a_plugin_that_fails_is_named_and_the_rest_works(self, fresh, install):
        install("bad", BAD)
        install("good", GOOD)
        with pytest.warns(PluginWarning, match=r"'bad' \(module 'bad_module'\).*the dog ate it"):
            names = dk.available("schedule")
        assert "half" not in names
        assert {"cosine", "good"} <= set(names)
        assert "the dog ate it" in report("bad").error
        assert report("bad").parts == {}
        assert report("good").error is None
        with pytest.raises(UnknownPartError, match=r"no schedule 'half'.*failed to import: bad\."):
            dk.get("schedule", "half")

    def test_warnings_as_errors_lose_no_plugin(self, fresh, install):
        install("bad", BAD)
        install("good", GOOD)
        with pytest.raises(PluginWarning, match="the dog ate it"):
            dk.available("schedule")
        assert "good" in dk.available("schedule")

    def test_a_plugin_imported_by_a_failing_one_stays(self, fresh, install):
        # 'bad' comes first, and builds on 'good'.
        install("bad", "import good_module\n" + textwrap.dedent(BAD))
        install("good", GOOD)
        with pytest.warns(PluginWarning, match="'bad'"):
            assert "good" in dk.available("schedule")
        assert "half" not in dk.available("schedule")
        assert report("good").parts == {"schedule": ("good",), "preset": ("good",)}

    def test_a_plugin_imported_by_hand_is_still_one(self, fresh, install):
        install("good", GOOD)
        __import__("good_module")
        assert not fresh.discovered
        assert report("good").parts == {"schedule": ("good",), "preset": ("good",)}
        assert "good_module" not in [found.name for found in dk.plugins()]

    def test_two_plugins_with_one_part_name(self, fresh, install):
        install("one", GOOD)
        install("two", GOOD)
        with pytest.warns(PluginWarning, match=r"'two'.*one_module\.Good .*two_module\.Good"):
            part = dk.get("schedule", "good")
        assert part.__module__ == "one_module"
        assert report("one").parts == {"schedule": ("good",), "preset": ("good",)}
        assert "DuplicatePartError" in report("two").error
        assert "one_module.Good" in report("two").error
        assert "two_module.Good" in report("two").error

    def test_two_distributions_with_one_plugin_name(self, fresh, install):
        install("one", GOOD, plugin="same")
        install("two", BAD, plugin="same")
        with pytest.warns(PluginWarning, match=r"'same \(two\)'"):
            assert "good" in dk.available("schedule")
        assert report("same").distribution == "one"
        assert report("same").error is None
        assert "the dog ate it" in report("same (two)").error

    def test_a_plugin_without_its_module(self, fresh, install, tmp_path):
        install("gone", "")
        (tmp_path / "gone_module.py").unlink()
        with pytest.warns(PluginWarning, match="'gone'.*No module named 'gone_module'"):
            assert "cosine" in dk.available("schedule")

    def test_the_first_party_plugin(self):
        found = report("vdm")
        assert found.module == "diffkit_vdm"
        assert found.distribution == "diffkit-vdm"
        assert "learned_monotone" in found.parts["schedule"]
        assert "vdm" in found.parts["preset"]
        assert dk.plugins()[0].name == "diffkit"
        assert "cosine" in dk.plugins()[0].parts["schedule"]

    def test_parts_of_a_script_are_shown(self, fresh):
        exec("import diffkit as dk\ndk.register('schedule', 'mine')(int)", {"__name__": "__main__"})
        assert report("__main__").parts == {"schedule": ("mine",)}


class TestCommand:
    @pytest.fixture(autouse=True)
    def wide(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "200")

    def test_all_well(self, capsys):
        with pytest.raises(SystemExit, match="0"):
            main(["plugins"])
        out = capsys.readouterr().out
        assert "vdm" in out
        assert "learned_linear" in out

    def test_a_failure(self, fresh, install, capsys):
        install("bad", BAD)
        with pytest.raises(SystemExit, match="1"):
            main(["plugins"])
        captured = capsys.readouterr()
        assert "RuntimeError: the dog ate it" in captured.out
        assert "plugin 'bad' (bad_module)" in captured.err
        assert "cosine" in captured.out


def test_discovery_waits_for_the_first_look_up(install):
    # In a process of its own, as a user has it: the environment finds the plugin, not a fixture.
    folder = install("loud", "print('here I am')")
    code = """
        import diffkit as dk
        dk.register("schedule", "mine")(dk.Cosine)
        print("imported")
        dk.available("schedule")
        dk.available("schedule")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split("\n")[:2] == ["imported", "here I am"], done.stderr
    assert done.stdout.count("here I am") == 1
