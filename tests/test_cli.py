"""The command line, as a user types it."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import re
import shutil
import sys
import threading
import types

import equinox as eqx
import jax
import numpy as np
import pytest
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

import diffkit as dk
from diffkit.cli import Command, main
from diffkit.cli.commands import _samples_name, _variance_output
from diffkit.cli.launch import compose
from diffkit.cli.plugins import FIRST_PARTY
from diffkit.cli.plugins import commands_of as of_distribution
from diffkit.cli.settings import COMMANDS

SMALL = [
    "network=mlp",
    "network.width=8",
    "network.depth=1",
    "schedule=learned_linear",
    "train.steps=6",
    "train.steps_per_dispatch=3",
    "train.batch_size=8",
    "passes=1",
    "samples=4",
    "sample_steps=3",
]


@contextlib.contextmanager
def hydra_put_back():
    state = ConfigStore.get_state()
    yield
    ConfigStore.set_state(state)
    GlobalHydra.instance().clear()


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty directory to work in; Hydra's global state is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["diffkit"])
    with hydra_put_back():
        yield tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directories of two runs, trained for a few steps: `flow` and `vdm`."""
    path = tmp_path_factory.mktemp("trained")
    arguments = [*(a for a in SMALL if "schedule=" not in a), "samples=0"]
    with hydra_put_back(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["diffkit"])
        main(["train", "preset=flow_matching", f"run={path / 'flow'}", *arguments])
        main(["train", "preset=vdm", f"run={path / 'vdm'}", "schedule=learned_linear", *arguments])
    return path


@pytest.fixture
def runs(trained, workplace):
    """Copies of the two runs in the working directory."""
    shutil.copytree(trained, workplace, dirs_exist_ok=True)
    return workplace


def contents(path):
    """Every file below a directory, with what is in it."""
    return {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def fails(arguments, capfd):
    """The command's message: it must fail without a stack trace."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code not in (0, None)
    message = capfd.readouterr().err
    assert "Traceback" not in message
    return message


def test_train_evaluate_sample(workplace, capfd):
    discrete = [*SMALL, "train.loss_steps=10", "evaluate_steps=[null]"]
    main(["train", "preset=vdm", "data=digits", "run=r", *discrete])
    out = capfd.readouterr().out
    assert re.fullmatch(r"test bits/dim: \d+\.\d\d \+- \d+\.\d\d", out.strip().splitlines()[-1])
    for known in ("uniform", "4.0875", "independent", "2.3643", "lzma"):
        assert known in out
    run = workplace / "r"
    names = {path.name for path in run.iterdir()}
    assert {
        "config.yaml",
        "metrics.jsonl",
        "evaluation.json",
        "checkpoints",
        "tensorboard",
    } <= names
    for picture in ("samples.png", "curves.png", "schedule.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")
    assert np.load(run / "samples.npy").shape == (4, 1, 8, 8)

    # The run read again gives the number that was written.
    loaded = dk.load_run(run)
    assert loaded.step == 6
    assert loaded.data().levels == 17
    # Null is continuous time, whatever T the run was trained with.
    stored = json.loads((run / "evaluation.json").read_text())
    (continuous,) = stored["at_steps"]
    assert (stored["steps"], continuous["steps"]) == (10, None)
    again = dk.evaluate(loaded.model, loaded.data().test, key=jax.random.key(0), passes=1)
    assert again.bits_per_dim[0] == pytest.approx(continuous["total_bits_per_dim"], rel=1e-5)

    main(["evaluate", "r", "steps=10", "passes=1"])
    out = capfd.readouterr().out
    assert "T = 10" in out
    assert f"test bits/dim: {stored['total_bits_per_dim']:.4f}" in out
    assert re.search(r"test bits/dim: \d+\.\d{4} \+- \d", out)
    main(["sample", "r", "sampler=ddim", "sampler.eta=0.5", "steps=3", "count=5"])
    assert capfd.readouterr().out.strip() == "r/samples_ddim_3_eta0.5_count5.png"
    assert np.load(run / "samples_ddim_3_eta0.5_count5.npy").shape == (5, 1, 8, 8)

    # Named after the choice, not after the class, of which several samplers may be cases.
    main(["sample", "r", "sampler=deis", "steps=2", "count=2"])
    assert capfd.readouterr().out.strip() == "r/samples_deis_2_count2.png"

    # Other choices in the same place are refused, and nothing is changed; the same ones go on.
    config = (run / "config.yaml").read_text()
    message = fails(["train", "preset=vdm", "run=r", *discrete, "train.seed=1"], capfd)
    assert "holds a run with other choices: train.seed (0 there, 1 now)" in message
    assert (run / "config.yaml").read_text() == config
    records = (run / "metrics.jsonl").read_text()
    main(["train", "preset=vdm", "run=r", *discrete, "samples=0"])
    assert "step" not in capfd.readouterr().out.split("test,")[0].replace("run: r", "")
    assert (run / "metrics.jsonl").read_text() == records

    # A run that is older than an option had what is now its default.
    older = yaml.safe_load(config)
    del older["train"]["condition_dropout"], older["optimiser"]
    (run / "config.yaml").write_text(yaml.safe_dump(older))
    message = fails(["train", "preset=vdm", "run=r", *discrete, "train.condition_dropout=0.2"], capfd)
    assert "train.condition_dropout (0.1 there, 0.2 now)" in message
    main(["train", "preset=vdm", "run=r", *discrete, "samples=0"])
    assert (run / "metrics.jsonl").read_text() == records


def test_choices_and_multirun(workplace, capfd):
    main(
        [
            "train",
            "--multirun",
            "schedule=cosine,linear_logsnr",
            "parameterization=v",
            *(argument for argument in SMALL if not argument.startswith("schedule=")),
        ]
    )
    runs = sorted(path.parent for path in workplace.glob("runs/*/config.yaml"))
    assert len(runs) == 2
    kinds = {type(dk.load_run(path).model.schedule) for path in runs}
    assert kinds == {dk.Cosine, dk.LinearLogSNR}
    assert all(isinstance(dk.load_run(p).model.denoiser.parameterization, dk.V) for p in runs)
    assert capfd.readouterr().out.count("test bits/dim:") == 2


def test_naming_the_presets_own_part_changes_nothing(workplace, capfd):
    # `--cfg job` prints the composed configuration.
    for arguments in (["network=vdm_unet"], []):
        main(["train", "preset=vdm", *arguments, "--cfg=job"])
    one, other = capfd.readouterr().out.split("data:\n")[1:3]
    assert re.search(r"  width: 32\n", one) or re.search(r"  width: 32\n", other)
    main(["train", "preset=vdm", "network=vdm_unet", "--cfg=job", "--package=network"])
    assert "width: 32" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "schedule=cosin"], "there is no schedule 'cosin'. Did you mean 'cosine'?"),
        (
            ["train", "train.stpes=5"],
            "option 'train.stpes'. Did you mean 'train.steps'? There are: ",
        ),
        (
            ["train", "network=mlp", "network.widht=5"],
            "no option 'network.widht'. Did you mean 'network.width'? There are: network.width, ",
        ),
        (["train", "nework.width=5"], "Did you mean 'network'?"),
        (["evaluate", "a", "stpes=5"], "Did you mean 'steps'? There are: run, steps, passes, "),
        (["evaluate", "a", "schedule.shift=1"], "give schedule=NAME as well"),
        (
            ["train", "--multirun", "schedule=cosine,linear_logsnr", "train.stpes=5"],
            "'train.steps'?",
        ),
        (["sample", "nowhere", "out=x"], "out must end in .png, got 'x'"),
        (["train", "train.steps=many"], "could not be converted to Integer"),
        (["train", "schedule=cosine,linear_logsnr"], "has several values: give --multirun"),
        (["evaluate", "a", "launcher=joblib"], "launcher= is for several jobs: give --multirun"),
        (["evaluate", "a", "-m", "launcher=pbs"], "launcher must be one of basic, joblib, "),
        (["train", "--multirun", "hydra/launcher=pbs"], "pip install 'diffkit[sweeps]'"),
        (["train", "--cgf=job"], "unrecognized arguments: --cgf=job"),
        (["train", "train.steps=0"], "train.steps must be at least 1, got 0"),
        (["train", "decoder=gaussian"], "Choose decoder=discretized for integer levels"),
        (["train", "data=idx", "data.path=nowhere"], "nowhere"),
        (
            ["train", "data=idx"],
            "data=idx needs data.path=..., the folder with the files under their",
        ),
        (["train", "data=array"], "data=array needs data.path=..., the file, whose name ends in"),
        (
            ["train", "data=swirl"],
            "network vdm_unet takes images (channels, height, width), but the ex",
        ),
        (["evaluate"], "RUN is missing"),
        (["evaluate", "nowhere"], "path must be a run directory"),
        (["sample", "nowhere", "steps=0"], "steps must be at least 1, got 0"),
        (["trian"], "there is no command 'trian'"),
        (["new-plugin", "fine", "--path", "/proc/nope/fine"], "cannot be written"),
        (["convert"], "RUN is missing: diffkit convert RUN OUT"),
        (["convert", "nowhere", "process=straight"], "OUT is missing: diffkit convert RUN OUT"),
        (["convert", "a", "b", "c"], "'c' must be SETTING=VALUE: diffkit convert RUN OUT ["),
        (["convert", "nowhere", "out", "process=straight"], "path must be a run directory"),
        (["convert", "nowhere", "out"], "convert needs process=NAME or schedule=NAME, or both"),
        (["convert", "a", "b", "process=strait"], "no process 'strait'. Did you mean 'straight'?"),
        (["train", "from=nowhere"], "path must be a run directory, there is nothing at nowhere"),
        (["train", "from=nowhere@8"], "path must be a run directory, there is nothing at /"),
        (["evaluate", "nowhere@8"], "path must be a run directory, there is nothing at nowhere"),
        (["convert", "a", "b", "sampler=ddim"], "There are: run, out, process, schedule."),
        (["equivalence", "vdm"], "B is missing: diffkit equivalence A B"),
        (["equivalence", "vdm", "edn"], "there is no preset 'edn'. Did you mean 'edm'?"),
        (["equivalence", "vdm", "edm", "levels=1"], "levels must be at least 2, got 1"),
    ],
)
def test_mistakes_are_named_without_a_stack_trace(workplace, capfd, arguments, message):
    said = fails(arguments, capfd)
    assert message in said
    assert "HYDRA_FULL_ERROR" not in said
    assert not (workplace / "runs").exists() or not list(workplace.glob("runs/*/checkpoints"))


@pytest.mark.parametrize(
    "rest",
    [["steps=3", "--cfg=job"], ["--cfg=job", "steps=3"], ["--cfg", "job", "steps=3"]],
)
def test_run_may_stand_beside_flags_in_any_order(capfd, rest):
    main(["evaluate", "runs/a b", *rest])
    out = capfd.readouterr().out
    assert "run: runs/a b" in out
    assert "steps: 3" in out


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_lists_the_choices_of_every_kind(capfd, arguments):
    main(arguments)
    out = capfd.readouterr().out
    for kind in dk.registry.KINDS:
        assert kind in out
        for name in dk.available(kind):
            assert name in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_every_setting_is(capfd, command):
    main([command, "--help"])
    out = capfd.readouterr().out
    names = {f"  {name}" for name in COMMANDS[command].defaults}
    if command == "train":
        names |= {f"  train.{field.name}" for field in dataclasses.fields(dk.TrainConfig)}
    for name in names:
        assert re.search(rf"^{re.escape(name)}=\S+ +\S", out, re.M), name


def test_help_of_train_shows_what_is_default(capfd):
    main(["train", "--help"])
    out = capfd.readouterr().out
    assert "launcher=NAME" in out
    assert "decay of step n to (1 + n) / (10 + n)" in " ".join(out.split())
    assert "preset=NAME --cfg job" in out
    marked = set(re.findall(r"^\* (\w+)", out, re.M))
    # What a run without choices is made of.
    main(["train", "--cfg=job"])
    config = yaml.safe_load(capfd.readouterr().out)
    for kind in dk.registry.KINDS:
        if kind != "preset":
            (name,) = (n for n in marked if n in dk.available(kind))
            assert config[kind]["_target_"].endswith(dk.get(kind, name).__qualname__)
    assert len(marked) == len(dk.registry.KINDS)


def test_our_plugins_are_named_where_they_are_missing(runs, monkeypatch, capfd):
    reports = {report.name: report for report in dk.registry.plugins()}
    for extra, names in FIRST_PARTY.items():
        found = {
            *reports[extra].parts.get("preset", ()),
            *of_distribution(reports[extra].distribution),
        }
        assert found == set(names)

    commands_of(monkeypatch)
    assert "pip install 'diffkit[bitsback]'" in fails(["compress", "flow", "test", "out"], capfd)
    with monkeypatch.context() as patch:
        patch.setitem(dk.registry._STATE.parts, "preset", {})
        for words, extra in (
            (["data=digits"], "vdm"),
            (["preset=vdm"], "vdm"),
            (["preset=ve_sde"], "score_sde"),
        ):
            said = fails(["train", *words], capfd)
            assert f"pip install 'diffkit[{extra}]' brings it" in said
    monkeypatch.setitem(sys.modules, "diffkit_vdm", None)  # so that it is not found
    others = {n: p for n, p in dk.registry._STATE.parts["schedule"].items() if p.plugin != "vdm"}
    monkeypatch.setitem(dk.registry._STATE.parts, "schedule", others)
    said = fails(["evaluate", "vdm"], capfd)
    assert "diffkit_vdm" in said
    assert "pip install 'diffkit[vdm]'" in said


def test_a_run_of_python_is_for_python(runs, capfd):
    shutil.copytree("flow/checkpoints", "python/checkpoints")  # as `fit` in Python leaves it
    for command in ("evaluate", "sample"):
        said = fails([command, "python"], capfd)
        assert "dk.load_run(path, like=MODEL), a model of the same structure" in said


@pytest.mark.parametrize("error", [MemoryError(), OverflowError("too large"), EOFError("cut off")])
def test_any_error_of_a_command_is_a_line(runs, capfd, monkeypatch, error):
    def broken(path, **options):
        raise error

    monkeypatch.setattr("diffkit.cli.commands.load_run", broken)
    said = fails(["evaluate", "flow"], capfd)
    assert said == f"diffkit evaluate: {str(error) or 'MemoryError'}\n"


def test_a_damaged_configuration_is_a_line(runs, capfd):
    (runs / "flow/config.yaml").write_text("train: [1, 2\nx: {\n")
    said = fails(["evaluate", "flow"], capfd)
    assert "diffkit evaluate: flow/config.yaml is damaged in line 2: " in said


def commands_of(monkeypatch, *entries):
    """Let these be the entry points of commands: names, values, and the distributions' names."""
    made = [
        importlib.metadata.EntryPoint(name, value, "diffkit.commands")._for(
            types.SimpleNamespace(name=distribution)
        )
        for name, value, distribution in entries
    ]
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: made if "commands" in group else []
    )


def test_plugins_bring_commands(monkeypatch, capfd, workplace):
    (workplace / "brought.py").write_text(
        "def count(arguments):\n    print(*arguments)\n    return len(arguments)\n"
        "def nothing(arguments):\n    return None\n"
        "def other(arguments):\n    return 99\n"
    )
    monkeypatch.syspath_prepend(str(workplace))
    commands_of(
        monkeypatch,
        ("count", "brought:other", "z-package"),
        ("count", "brought:count", "a-package"),
        ("nothing", "brought:nothing", "a-package"),
        ("train", "brought:other", "a-package"),
        ("broken", "brought_not:count", "z-package"),
        ("missing", "brought:no_such", "z-package"),
    )
    for words, status in ((["count", "a=b", "--c"], 2), (["count"], 0), (["nothing"], 0)):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == status
    assert capfd.readouterr().out == "a=b --c\n\n"
    for command, module in (("broken", "brought_not"), ("missing", "no_such")):
        message = fails([command], capfd)
        assert re.search(rf"command '{command}' of z-package .*could not be imported.*{module}", message)
    # Ours are not replaced, and what nobody brings is no command.
    assert "no_such_setting" in fails(["train", "no_such_setting=3"], capfd)
    assert "there is no command 'compres'" in fails(["compres"], capfd)


def test_help_lists_the_commands_of_plugins_without_importing_them(monkeypatch, capfd):
    commands_of(monkeypatch, ("squeeze", "no_such_module:run", "diffkit-squeezer"))
    main(["--help"])
    assert re.search(r"commands of plugins:\n  squeeze +diffkit-squeezer\n", capfd.readouterr().out)


def test_plugins_lists_what_is_installed(capfd):
    with pytest.raises(SystemExit) as stopped:
        main(["plugins"])
    assert stopped.value.code == 0
    out = capfd.readouterr().out
    assert "learned_monotone" in out
    assert "ok" in out


def bits_per_dim(out):
    return float(re.search(r"test bits/dim: (\d+\.\d{4}) \+- \d", out)[1])


def drawn(path, model, sampler, grid, *, steps, count):
    """The samples that a command wrote, which are those that Python draws."""
    samples = np.load(path)
    assert samples.dtype == np.uint8
    assert samples.shape == (count, 1, 8, 8)
    assert samples.max() < 17
    expected = dk.sample(model, sampler, count, key=jax.random.key(0), steps=steps, grid=grid)
    np.testing.assert_array_equal(samples, expected)
    return samples


def test_a_trained_model_is_evaluated_and_sampled_as_others_are(runs, capfd):
    # No retraining: not a file of the runs changes.
    before = contents(runs)
    flow, vdm = dk.load_run("flow"), dk.load_run("vdm")
    assert dk.registry.name_of("process", flow.model.process) == "straight"
    main(["evaluate", "flow", "passes=2"])
    found = bits_per_dim(capfd.readouterr().out)
    result = dk.evaluate(flow.model, flow.data().test, key=jax.random.key(0), passes=2)
    assert found == pytest.approx(result.bits_per_dim[0], abs=6e-5)
    assert 1 < found < 50

    edm_heun, euler = (dk.part("sampler", n, model=flow.model) for n in ("edm_heun", "euler"))
    rho, even = (dk.part("grid", n, model=flow.model) for n in ("rho", "uniform_t"))
    main(["sample", "flow", "sampler=ancestral", "steps=4", "count=3"])
    drawn(
        "flow/samples_ancestral_4_count3.npy", flow.model, dk.samplers.Ancestral(), even, steps=4, count=3
    )
    main(["sample", "flow", "sampler=edm_heun", "grid=rho", "steps=5", "count=3"])
    drawn("flow/samples_edm_heun_5_rho_count3.npy", flow.model, edm_heun, rho, steps=5, count=3)
    main(["sample", "vdm", "sampler=euler", "steps=4", "count=3"])
    drawn("vdm/samples_euler_4_count3.npy", vdm.model, euler, even, steps=4, count=3)
    lines = capfd.readouterr().out.split()
    assert lines == [
        "flow/samples_ancestral_4_count3.png",
        "flow/samples_edm_heun_5_rho_count3.png",
        "vdm/samples_euler_4_count3.png",
    ]
    assert {file: text for file, text in contents(runs).items() if file in before} == before


def test_convert(runs, capfd):
    before = contents(runs / "flow")
    arguments = ["process=variance_preserving", "schedule=cosine", "schedule.logsnr_min=-10.0"]
    main(["convert", "flow", "deep/as-vp", *arguments])
    # The same range: nothing is lost, and so nothing is said.
    assert capfd.readouterr().out == "run: deep/as-vp\n"
    assert contents(runs / "flow") == before
    out = runs / "deep" / "as-vp"
    assert set(os.listdir(out.parent)) == {"as-vp"}
    assert set(os.listdir(out)) == {"config.yaml", "data.json", "metrics.jsonl", "checkpoints"}
    assert (out / "metrics.jsonl").read_bytes() == before[runs / "flow" / "metrics.jsonl"]

    # It is what `transport` gives, to the last bit.
    source, converted = dk.load_run("flow"), dk.load_run(out)
    assert converted.step == source.step
    assert converted.metrics == source.metrics
    schedule = dk.Cosine(logsnr_min=-10.0, levels=17)
    expected = dk.equivalence.transport(source.model, to=dk.VariancePreserving(), schedule=schedule)
    assert eqx.tree_equal(converted.model, expected)
    assert isinstance(converted.model.denoiser, dk.equivalence.Transported)
    z = jax.random.normal(jax.random.key(0), (1, 8, 8))
    found, same = (model.denoiser(z, -1.0) for model in (converted.model, expected))
    np.testing.assert_array_equal(found.x, same.x)
    rescaled = z / converted.model.process.at(-1.0).alpha * source.model.process.at(-1.0).alpha
    np.testing.assert_allclose(found.x, source.model.denoiser(rescaled, -1.0).x, rtol=1e-4)

    # The bound is the same, noise for noise, at the same noise levels.
    test = source.data().test
    x = test.gather(np.arange(32))
    bounds = [
        eqx.filter_jit(dk.vlb)(
            model,
            x,
            key=jax.random.key(1),
            time_sampler=dk.equivalence.canonical_time_sampling(dk.ELBO(), model.schedule),
        )
        for model in (source.model, converted.model)
    ]
    np.testing.assert_allclose(bounds[0].total, bounds[1].total, rtol=1e-3)

    main(["evaluate", "deep/as-vp", "passes=4"])
    after = bits_per_dim(capfd.readouterr().out)
    main(["evaluate", "flow", "passes=4"])
    assert after == pytest.approx(bits_per_dim(capfd.readouterr().out), rel=0.05)
    main(["sample", "deep/as-vp", "sampler=ddim", "steps=3", "count=2"])
    even = dk.UniformT()
    drawn(out / "samples_ddim_3_count2.npy", converted.model, dk.samplers.DDIM(), even, steps=3, count=2)


def test_convert_a_converted_run(runs, capfd):
    main(["convert", "flow", "a", "schedule=linear_logsnr", "schedule.logsnr_min=-10.0"])
    main(["convert", "a", "b", "process=sub_vp"])
    main(["convert", "b", "c", "process=straight"])
    assert capfd.readouterr().out == "run: a\nrun: b\nrun: c\n"
    source, *converted = (dk.load_run(n).model for n in ("flow", "a", "b", "c"))
    names = [dk.registry.name_of("process", model.process) for model in converted]
    assert names == ["straight", "sub_vp", "straight"]
    for model in converted:
        assert isinstance(model.schedule, dk.LinearLogSNR)
        np.testing.assert_allclose(model.schedule.endpoints, source.schedule.endpoints, rtol=1e-6)
    # Back under its own process it is the denoiser that was trained, with nothing around it.
    assert eqx.tree_equal(converted[2].denoiser, source.denoiser)
    # Another schedule replaces the one before.
    main(["convert", "b", "d", "schedule=straight_line", "schedule.logsnr_min=-10.0"])
    last = dk.load_run("d").model
    assert eqx.tree_equal(last.schedule, source.schedule)
    assert dk.registry.name_of("process", last.process) == "sub_vp"


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ((15.0, -10.0), ["data end: the schedule begins at logsnr 15, "]),
        ((5.0, -10.0), ["data end: the schedule begins at logsnr 5, and what the model knows"]),
        ((None, -12.0), ["noise end: the schedule ends at logsnr -12, "]),
        ((15.0, -3.0), ["data end", "noise end: the schedule ends at logsnr -3, and what"]),
    ],
)
def test_convert_names_what_a_range_loses(runs, capfd, ends, said):
    options = [f"schedule.logsnr_{n}={end}" for n, end in zip(("max", "min"), ends, strict=True)]
    main(["convert", "flow", "out", "schedule=cosine", *(o for o in options if "None" not in o)])
    *lines, last = capfd.readouterr().out.splitlines()
    assert last == "run: out"
    assert len(lines) == len(said)
    for line, begin in zip(lines, said, strict=True):
        assert line.startswith(begin)
    # Loading is silent: it was said once.
    assert isinstance(dk.load_run("out").model.schedule, dk.Cosine)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flow", "vdm", "process=straight"], "out must be a new directory, there is something at"),
        (["flow", "flow", "process=straight"], "out must be a new directory"),
        (["flow", "out"], "convert needs process=NAME or schedule=NAME, or both; got neither"),
        (
            ["flow", "out", "schedule=cosine", "schedule.bend=1"],
            "no option 'schedule.bend'. There are: schedule.logsnr_max, schedule.logsnr_min, ",
        ),
        (
            ["flow", "out", "schedule=cosine", "schedule.logsnr_max=-20.0"],
            "logsnr_max must be finite and greater than logsnr_min",
        ),
        (["flow", "out", "process=cosine"], "there is no process 'cosine'"),
        (["nowhere", "out", "process=straight"], "path must be a run directory"),
        (["python", "out", "process=straight"], "by an older version and has no config.yaml"),
    ],
)
def test_what_cannot_be_converted_leaves_nothing(runs, capfd, arguments, message):
    shutil.copytree("flow/checkpoints", "python/checkpoints")  # as `fit` in Python leaves it
    before = contents(runs)
    assert message in fails(["convert", *arguments], capfd)
    assert contents(runs) == before
    assert set(os.listdir()) == {"flow", "vdm", "python"}


def test_a_converted_run_is_complete_or_absent(runs, capfd, monkeypatch):
    def full(*arguments, **options):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(yaml, "safe_dump", full)  # after the checkpoint was copied
        message = fails(["convert", "flow", "out", "process=sub_vp"], capfd)
    assert "no space left on device" in message
    assert not (runs / "out").exists()
    main(["convert", "flow", "out", "process=sub_vp"])
    assert set(os.listdir()) == {"flow", "vdm", "out"}
    assert set(os.listdir("out")) == {"config.yaml", "data.json", "metrics.jsonl", "checkpoints"}


def test_equivalence(workplace, capfd):
    main(["equivalence", "vdm", "edm", "out=figures/two.png"])
    out = capfd.readouterr().out
    comparison = dk.equivalence.compare("vdm", "edm")
    assert out.splitlines()[-3:] == [
        "generative model: same within the common range",
        "objective: different",
        "figures/two.png",
    ]
    words = out.split()
    for row in comparison.rows:
        assert all(word in words for word in f"{row.what} {row.a} {row.b}".split())
    for reason in comparison.reasons:
        assert reason in out
    assert (workplace / "figures" / "two.png").read_bytes().startswith(b"\x89PNG")
    assert set(os.listdir()) == {"figures"}
    assert set(os.listdir("figures")) == {"two.png", "two.request.json"}


def test_equivalence_of_runs(runs, capfd):
    main(["convert", "flow", "moved", "process=sub_vp", "schedule=cosine"])
    capfd.readouterr()
    # A run and its preset, which is taken for the data of the run.
    main(["equivalence", "flow", "flow_matching"])
    out = capfd.readouterr().out.splitlines()
    assert out[-3:] == [
        "generative model: same",
        "objective: same",
        "equivalence_flow_flow-matching.png",
    ]
    assert (runs / out[-1]).read_bytes().startswith(b"\x89PNG")

    compare = dk.equivalence.compare
    run, config = dk.load_run("flow"), yaml.safe_load((runs / "flow/config.yaml").read_text())
    for other in (run, config, runs / "flow" / "config.yaml", "flow/config.yaml", runs / "flow"):
        comparison = compare("flow", other)
        assert all(row.same for row in comparison.rows)
        assert comparison.same_model
        assert comparison.same_objective
    assert compare(run, config).b.name == "configuration"

    # Converted: under another process and schedule, with the loss that it was trained with.
    moved = compare("flow", "moved")
    assert moved.b.labels["process"] == "sub_vp"
    assert moved.b.labels["schedule"] == "cosine"
    assert moved.model == "same within the common range"  # the cosine ends at -5
    assert moved.objective == "same within the common range"
    differing = {row.what for row in moved.rows if not row.same}
    assert differing == {"logsnr", "schedule", "process"}

    # With the endpoints that it learned, which differ from those that it started with.
    trained = compare(dk.load_run("vdm"), yaml.safe_load((runs / "vdm/config.yaml").read_text()))
    assert trained.a.range == pytest.approx(
        [float(end) for end in dk.load_run("vdm").model.schedule.endpoints]
    )
    assert trained.b.range == pytest.approx((13.3 + 2 * np.log(17 / 256), -5.0))
    assert trained.objective in ("same", "same within the common range")

    # Another number of levels, or data of another shape, is another model.
    many = compare("flow", "flow_matching", levels=256)
    assert many.model == "different"
    large = dataclasses.replace(dk.equivalence.composition(run), data=((3, 32, 32), 0))
    assert compare(run, large).model == compare(run, large).objective == "different"
    assert "They are models of data of other shapes or conditions." in compare(run, large).reasons

    shutil.copytree("flow/checkpoints", "python/checkpoints")
    with pytest.raises(ValueError, match="run python was started in Python"):
        compare("vdm", "python")
    python = dk.load_run("python", like=run.model)
    with pytest.raises(ValueError, match=r"run python has no config.yaml, so its loss is not"):
        compare("vdm", python)


def test_samples_are_named_after_all_that_was_asked(runs, capfd):
    asked = [[], ["seed=2"], ["count=3"], ["sampler=ddim", "sampler.eta=0.5"], ["grid=uniform_logsnr"]]
    drawn, names = {}, []
    for words in asked:
        main(["sample", "vdm", "steps=2", *(() if "count=3" in words else ("count=2",)), *words])
        names.append(capfd.readouterr().out.strip())
        drawn |= {file: file.read_bytes() for file in runs.glob("vdm/samples_*") if file not in drawn}
    assert names == [
        "vdm/samples_ancestral_2_count2.png",
        "vdm/samples_ancestral_2_count2_seed2.png",
        "vdm/samples_ancestral_2_count3.png",
        "vdm/samples_ddim_2_eta0.5_count2.png",
        "vdm/samples_ancestral_2_uniform_logsnr_count2.png",
    ]
    # Each with the array and the record; none replaced another's.
    assert len(drawn) == 3 * len(asked)
    assert all(file.read_bytes() == text for file, text in drawn.items())
    # Again the same: the same files.
    main(["sample", "vdm", "steps=2", "count=2"])
    assert all(file.read_bytes() == text for file, text in drawn.items())
    assert capfd.readouterr() == ("vdm/samples_ancestral_2_count2.png\n", "")


def test_every_setting_that_changes_samples_is_in_their_name(runs):
    own = dk.load_run("vdm").config
    asked = [
        [],
        ["steps=3"],
        ["seed=1"],
        ["count=1"],
        ["condition=3"],
        ["condition=3", "guidance=2.0"],
        ["condition=3", "guidance=2.0", "guidance_interval=[-3,5]"],
        ["condition=[0.1,0.2]"],
        ["sampler=ddim"],
        ["sampler=ddim", "sampler.eta=0.5"],
        ["grid=uniform_logsnr"],
    ]
    names = []
    for words in asked:
        config = compose("sample", ["vdm", *words])
        nodes = {kind: config.get(kind) or own[kind] for kind in ("sampler", "grid")}
        names.append(_samples_name(config, nodes, own, None))
        names.append(_samples_name(config, nodes, own, 6))
    assert len(set(names)) == len(names)
    # The run's own part under its name is no other.
    config = compose("sample", ["vdm", "sampler=ancestral"])
    assert (
        _samples_name(config, {k: config.get(k) or own[k] for k in ("sampler", "grid")}, own, None)
        == names[0]
    )


def test_what_another_request_made_is_not_replaced_in_silence(runs, capfd):
    small = ["sample", "vdm", "steps=2", "count=2"]
    main([*small, "out=a.png"])
    before = contents(runs)
    capfd.readouterr()
    said = fails([*small, "seed=2", "out=a.png"], capfd)
    assert said == (
        "diffkit sample: a.png is of another request (seed: 0 there, 2 now): name another file with "
        "out=FILE, or replace it with overwrite=true.\n"
    )
    assert "(run: vdm there, flow now)" in fails(["sample", "flow", *small[2:], "out=a.png"], capfd)
    (runs / "vdm/samples_ancestral_2_count2.png").touch()  # of an older version, say
    assert "exists, and nothing says what made it" in fails(small, capfd)
    (runs / "vdm/samples_ancestral_2_count2.png").unlink()
    assert contents(runs) == before
    main([*small, "seed=2", "out=a.png", "overwrite=true"])
    assert (runs / "a.png").read_bytes() != before[runs / "a.png"]
    capfd.readouterr()
    # The same request of a run that went on is answered anew, and says so.
    record = json.loads((runs / "a.request.json").read_text())
    (runs / "a.request.json").write_text(json.dumps({**record, "checkpoint": 3}))
    main([*small, "seed=2", "out=a.png"])
    assert capfd.readouterr().err == "a.png is replaced: it was of step 3, the run is at 6.\n"


@pytest.mark.slow
def test_comparisons_and_pages_of_other_requests_are_not_replaced_in_silence(runs, capfd):
    main(["equivalence", "vdm", "edm"])
    main(["equivalence", "vdm", "edm"])
    assert "(levels: null there, 17 now)" in fails(
        ["equivalence", "vdm", "edm", "levels=17", "out=equivalence_vdm_edm.png"], capfd
    )
    main(["equivalence", "vdm", "edm", "levels=17"])
    assert (runs / "equivalence_vdm_edm_levels17.png").exists()

    main(["report", "vdm", "flow"])
    main(["report", "./vdm", "flow/"])
    capfd.readouterr()
    assert fails(["report", "vdm"], capfd).startswith(
        "diffkit report: report.md is of another request (runs: "
    )


def test_a_measurement_is_named_after_all_that_was_asked(runs, capfd):
    run = runs / "vdm"
    own = {"seed": 0, "checkpoint": 6}
    measured = functools.partial(_variance_output, run, **own)
    config = dk.load_run(run).config
    cosine = {"_target_": "diffkit.schedules.Cosine", "_partial_": True, "shift": 0.0}
    names = [
        measured().files[0].name,
        measured(own=config, seed=3).files[0].name,
        measured(own=config, split="train").files[0].name,
        measured(own=config, step=4).files[0].name,
        measured(own=config, times="anew").files[0].name,
        measured(own=config, schedule=cosine).files[0].name,
        measured(own=config, schedule={**cosine, "shift": 1.5}).files[0].name,
    ]
    assert names == [
        "variance.json",
        "variance_seed3.json",
        "variance_train.json",
        "variance_at4.json",
        "variance_anew.json",
        "variance_cosine.json",
        "variance_cosine_shift1.5.json",
    ]
    # What training measured with the seed of its run is not what seed 0 would measure.
    (run / "variance.json").write_text("{}")
    _variance_output(run, seed=5, checkpoint=6).end()
    said = fails(["evaluate", "vdm", "variance=true", "passes=1"], capfd)
    assert "vdm/variance.json is of another request (seed: 5 there, 0 now): replace it with over" in said
    assert (run / "variance.json").read_text() == "{}"


def test_a_checkpoint_is_evaluated_and_sampled_by_its_step(runs, capfd):
    shutil.copytree("vdm/checkpoints/6", "other/checkpoints/6")
    shutil.copy("vdm/config.yaml", "other/config.yaml")
    main(["evaluate", "vdm", "passes=1"])
    main(["evaluate", "vdm@6", "passes=1"])
    one, other = re.findall(r"test bits/dim: .*", capfd.readouterr().out)
    assert one == other
    main(["sample", "vdm@6", "steps=2", "count=2"])
    assert capfd.readouterr().out == "vdm/samples_ancestral_2_count2_at6.png\n"
    assert "run vdm has no checkpoint of step 5; it has " in fails(["sample", "vdm@5"], capfd)
    main(["equivalence", "vdm@6", "vdm"])
    assert "equivalence_vdm-6_vdm.png" in capfd.readouterr().out


@pytest.mark.slow
def test_train_from_a_checkpoint(runs, capfd):
    before = contents(runs / "vdm")
    words = ["train", "preset=vdm", *SMALL, "samples=0"]
    words = [w for w in words if not w.startswith("train.steps=")] + ["train.steps=9", "from=vdm@6"]
    main([*words, "train.learning_rate=1e-4"])
    (new,) = (runs / "runs").iterdir()
    config = yaml.safe_load((new / "config.yaml").read_text())
    assert config["from"] == f"{runs / 'vdm'}@6"
    assert config["train"]["learning_rate"] == 1e-4
    assert dk.load_run(new).step == 9
    assert contents(runs / "vdm") == before
    capfd.readouterr()
    main([*words, "train.learning_rate=1e-4"])
    assert "which is finished" in capfd.readouterr().out
    said = fails([*words, "run=other", "network.width=4"], capfd)
    assert said.startswith("diffkit train: from=")
    assert "is a run of another model: network.width (8 there, 4 now)." in said
    assert "train.steps must be more than the 6 steps" in fails([*words, "train.steps=6", "run=x"], capfd)
    assert not (runs / "other").exists()
    assert not (runs / "x").exists()


@pytest.mark.parametrize("command", ["evaluate", "sample", "convert", "equivalence", "report"])
def test_what_is_no_run_is_answered_in_a_sentence(runs, capfd, command):
    (runs / "empty").mkdir()
    more = {"convert": ["out", "process=straight"], "equivalence": ["vdm"]}.get(command, [])
    before = contents(runs)
    for run in ("vdm/checkpoints/6", "empty/", "vdm@5"):
        said = fails([command, run, *more], capfd)
        assert said.startswith(f"diffkit {command}: ")
        assert said.count("\n") == 1
        assert run.rstrip("/").partition("@")[0] in said
    assert contents(runs) == before


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """A command without settings."""


@pytest.mark.slow
def test_data_that_have_moved(runs, capfd, monkeypatch):
    np.save("points.npy", np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32))
    words = ["schedule=linear_logsnr", "decoder=gaussian", "data=array", "data.path=points.npy"]
    small = [w for w in SMALL if "schedule" not in w]
    main(["train", "preset=vdm", *words, *small, "samples=0", "run=r"])
    main(["evaluate", "r", "passes=1"])
    before = bits_per_dim(capfd.readouterr().out)
    (runs / "it's (1)").mkdir()
    place = runs / "it's (1)" / "2024,a=b.npy"
    (runs / "points.npy").rename(place)
    assert "there is nothing at path=" in fails(["evaluate", "r"], capfd)
    main(["evaluate", "r", "passes=1", f"data.path={place}"])
    assert bits_per_dim(capfd.readouterr().out) == before
    main(["sample", "r", "steps=2", "count=2", f"data.path={place}"])
    assert capfd.readouterr().out.strip() == "r/samples_ancestral_2_count2.png"
    assert dk.load_run("r", data={"path": place}).data().test.shape == (2,)


def test_data_have_the_options_that_they_had(runs, capfd):
    said = fails(["evaluate", "vdm", "data.path=x"], capfd)
    assert said == "diffkit evaluate: the data of run vdm have no option 'path'. They have: labels.\n"


def test_errors_of_other_threads_are_one_line_and_a_failure(capfd):
    def write():
        raise OSError(28, "No space left on device", "events")

    def task(config):
        for _ in range(3):
            thread = threading.Thread(target=write)
            thread.start()
            thread.join()

    before = threading.excepthook, sys.unraisablehook
    assert Command("squeeze", task, NoSettings)([]) == 1
    said = "diffkit squeeze: [Errno 28] No space left on device: 'events'\n"
    assert capfd.readouterr().err == said
    assert (threading.excepthook, sys.unraisablehook) == before

    def fails_too(config):
        task(config)
        raise ValueError("first")

    with pytest.raises(SystemExit):
        Command("squeeze", fails_too, NoSettings)([])
    assert capfd.readouterr().err == "diffkit squeeze: first\n"
