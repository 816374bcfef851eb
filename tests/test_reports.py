"""Reports against numbers computed by hand, and the settings of `diffkit train` that they rest on."""

import contextlib
import copy
import json
import re
import sys

import numpy as np
import pytest
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

import diffkit as dk
from diffkit.cli import main
from diffkit.configs import is_finished, write_config
from diffkit.reports.figures import band, save_variant_samples
from diffkit.training.figures import recorded, running_mean, save_samples

CONFIG = {
    "schedule": {
        "_target_": "diffkit.schedules.LinearLogSNR",
        "_partial_": True,
        "logsnr_max": 9.0,
        "logsnr_min": -5.0,
    },
    "process": {"_target_": "diffkit.processes.VariancePreserving", "_partial_": True},
    "network": {
        "_target_": "diffkit.networks.unet.UNet",
        "_partial_": True,
        "width": 8,
        "multipliers": [1, 2],
    },
    "weighting": {"_target_": "diffkit.weightings.ELBO", "_partial_": True},
    "data": {"_target_": "diffkit.data.swirl.Swirl", "_partial_": False, "points": 64, "seed": 0},
    "data_std": 1.0,
    "passes": 1,
    "samples": 4,
    "train": {
        "_target_": "diffkit.training.config.TrainConfig",
        "steps": 30,
        "batch_size": 8,
        "learning_rate": 0.001,
        "loss_steps": None,
        "seed": 0,
    },
}
LION = {"_target_": "diffkit.optimisers.Lion", "_partial_": True}
COSINE = {
    "schedule": {
        "_target_": "diffkit.schedules.Cosine",
        "_partial_": True,
        "logsnr_max": None,
        "logsnr_min": -5.0,
        "shift": 0.0,
    }
}


def configuration(**changes):
    """`CONFIG` with other entries: `schedule=...` replaces one, `train__steps=5` an option."""
    made = copy.deepcopy(CONFIG)
    for name, value in changes.items():
        *inside, last = name.split("__")
        node = made
        for key in inside:
            node = node[key]
        node[last] = copy.deepcopy(value)
    return made


def evaluation(total, *, steps=None, **more):
    record = {"prior_bits_per_dim": 0.125, "reconstruction_bits_per_dim": total / 4}
    record |= {"diffusion_bits_per_dim": 0.75 * total - 0.125, "total_bits_per_dim": total}
    record |= {"total_standard_error": 0.0321, "examples": 11, "passes": 1, "steps": steps}
    return record | more


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty directory to work in; Hydra's global state is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["diffkit"])
    with hydra_put_back():
        yield tmp_path


@contextlib.contextmanager
def hydra_put_back():
    state = ConfigStore.get_state()
    yield
    ConfigStore.set_state(state)
    GlobalHydra.instance().clear()


@pytest.fixture
def add(workplace):
    """A function that writes the directory of a run, unfinished without a `total`."""

    def write(name, total=None, *, seed=0, seconds=None, variance=None, samples=None, **changes):
        more = {key: changes.pop(key) for key in ("steps", "at_steps") if key in changes}
        run = workplace / name
        run.mkdir(parents=True)
        config = configuration(train__seed=seed, **changes)
        (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        if total is not None:
            (run / "evaluation.json").write_text(json.dumps(evaluation(total, **more)))
        if seconds is not None:
            records = [
                {"step": 10 * i, "seconds": seconds * i / 3, "loss": 5 - i - seed} for i in (1, 2, 3)
            ]
            (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        if variance is not None:
            one, batch, size = variance
            record = {"variance": one, "batch_variance": batch, "batch_size": size}
            (run / "variance.json").write_text(json.dumps(record))
        if samples is not None:
            np.save(run / "samples.npy", samples)
        return name

    return write


def tables(page):
    """The tables of a page: for each a list of rows, a row a mapping from the header to the cell."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", page, re.M):
        header, _, *rows = (
            [cell.strip(" `") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()
        )
        found.append([dict(zip(header, row, strict=True)) for row in rows])
    return found


# --- numbers ------------------------------------------------------------------------------------


def test_means_errors_and_differences(add, workplace):
    totals = {
        "schedule=linear_logsnr, schedule.logsnr_max=9": {0: 3.51, 1: 3.42, 2: 3.6},
        "schedule=cosine": {0: 3.31, 1: 3.27, 2: 3.33},  # the same seeds
        "schedule=sigmoid": {3: 3.9, 4: 4.3},  # others
        "schedule=edm": {0: 3.1},  # one
    }
    given = []
    others = {"_target_": "somewhere.else.sigmoid"}, {"_target_": "nowhere.edm", "p": 1.0}
    schedules = [CONFIG["schedule"], COSINE["schedule"], *others]
    for (name, seeds), schedule in zip(totals.items(), schedules, strict=True):
        # The last seed first: the order is the seeds', not the directories'.
        for seed, total in reversed(seeds.items()):
            given.append(f"s/{name.partition(',')[0]}{len(given)}")
            add(given[-1], total, seed=seed, schedule=schedule, seconds=6.0 + seed)
    made = dk.report(given, out="out/page.md")
    names = list(totals)
    names[2:] = ["schedule=sigmoid", "schedule=edm, schedule.p=1"]
    assert [variant.name for variant in made.variants] == names
    assert made.baseline == names[0]
    base = np.array(list(totals[names[0]].values()))
    for variant, seeds in zip(made.variants, totals.values(), strict=True):
        values = np.array(list(seeds.values()))
        assert variant.seeds == tuple(seeds)
        assert variant.totals == tuple(values)
        assert [
            json.loads((p / "evaluation.json").read_text())["total_bits_per_dim"] for p in variant.runs
        ] == list(values)
        np.testing.assert_allclose(variant.mean, values.mean(), rtol=1e-12)
        np.testing.assert_allclose(sum(variant.terms.values()), variant.mean, rtol=1e-12)
        np.testing.assert_allclose(variant.terms["reconstruction"], values.mean() / 4, rtol=1e-12)
        np.testing.assert_allclose(variant.seconds, 6 + np.mean(list(seeds)))
    linear, cosine, sigmoid, edm = made.variants
    s = 1 / np.sqrt(3)
    np.testing.assert_allclose(linear.standard_error, np.std(base, ddof=1) * s)
    assert (linear.difference, linear.difference_error, linear.compared) == (None, None, None)
    # Paired: by hand, the differences are -0.2, -0.15, -0.27.
    assert cosine.compared == "paired"
    np.testing.assert_allclose(cosine.difference, -0.62 / 3)
    np.testing.assert_allclose(cosine.difference_error, np.std([-0.2, -0.15, -0.27], ddof=1) * s)
    # Independent: 3.9 and 4.3 have the standard error 0.2.
    assert sigmoid.compared == "independent"
    np.testing.assert_allclose(sigmoid.standard_error, 0.2)
    np.testing.assert_allclose(sigmoid.difference, 4.1 - 3.51)
    np.testing.assert_allclose(sigmoid.difference_error, np.sqrt(0.2**2 + np.var(base, ddof=1) / 3))
    # One seed: a difference, and no error that is none.
    np.testing.assert_allclose(edm.difference, 3.1 - 3.51)
    assert (edm.standard_error, edm.difference_error, edm.compared) == (None, None, None)

    # The page has the numbers of the files.
    page = (workplace / "out" / "page.md").read_text()
    main_table, settings, runs = tables(page)
    for row, (_, seeds) in zip(main_table, totals.items(), strict=True):
        assert row["seeds"] == str(len(seeds))
        assert float(row["test bits/dim"]) == pytest.approx(np.mean(list(seeds.values())), abs=5e-5)
        assert float(row["prior"]) == 0.125
    assert [row["s.e."] for row in main_table] == ["0.0520", "0.0176", "0.2000", "–"]
    assert [row["difference"] for row in main_table] == [
        "baseline",
        "-0.2067",
        "+0.5900",
        "-0.4100",
    ]
    assert [row["s.e. of difference"] for row in main_table][::3] == ["–", "–"]
    assert float(main_table[1]["s.e. of difference"]) == pytest.approx(0.0348, abs=5e-5)
    assert [row["compared"] for row in main_table] == ["–", "paired", "independent", "–"]
    for row in runs:
        file = json.loads((workplace / row["run"] / "evaluation.json").read_text())
        assert float(row["test bits/dim"]) == pytest.approx(file["total_bits_per_dim"], abs=5e-5)
        config = yaml.safe_load((workplace / row["run"] / "config.yaml").read_text())
        assert int(row["seed"]) == config["train"]["seed"]
    assert len(runs) == 9
    # One seed has a note with the error over the test set.
    assert "* `schedule=edm, schedule.p=1`: one seed" in page
    assert "over the 11 examples of the test set is 0.0321." in page
    assert {row["setting"]: row[names[1]] for row in settings}["schedule.logsnr_max"] == "null"
    assert "variance of a draw" not in page
    assert "steps T" not in page


def test_baseline_is_the_first_or_the_one_named(add):
    for seed in (0, 1):
        add(f"a{seed}", 3.0 + seed, seed=seed)
        add(f"b{seed}", 2.0 + seed, seed=seed, **COSINE)
    add("c", seed=0, train__steps=60)
    first = dk.report(["b0", "a0", "a1", "b1"])
    assert first.baseline == "schedule=cosine"
    named = dk.report(["b0", "a0", "a1", "b1"], baseline="./a1")
    assert [v.name for v in named.variants] == [
        "schedule=linear_logsnr, schedule.logsnr_max=9",
        "schedule=cosine",
    ]
    assert named.variants[1].difference == -1.0
    assert named.variants[1].difference_error == 0.0
    # The first is not finished, nor another seed of it: the next one is the baseline.
    assert dk.report(["c", "a0", "b0"]).variants[0].runs == (named.variants[0].runs[0],)
    with pytest.raises(ValueError, match=r"baseline must be a run that is finished, .* got 'c'"):
        dk.report(["a0", "c"], baseline="c")
    with pytest.raises(ValueError, match="baseline must be one of the runs, got 'b1'"):
        dk.report(["a0", "b0"], baseline="b1")


def test_numbers_of_steps(add, workplace):
    at = {0: {10: 4.0, None: 3.0}, 1: {10: 4.5, None: 3.25, 1000: 3.5}}
    for seed, bounds in at.items():
        records = [evaluation(total, steps=steps) for steps, total in bounds.items()]
        add(f"a{seed}", 3.0, seed=seed, at_steps=records)
    add("b", 3.0, at_steps=[evaluation(5.0, steps=10)], **COSINE)
    add("t", 3.0, steps=1000, train__timesteps=1000)
    made = dk.report(["a0", "a1", "b", "t"])
    first = made.variants[0].at_steps
    assert list(first) == [10, 1000, None]
    assert (first[10].mean, first[10].standard_error, first[10].count) == (4.25, 0.25, 2)
    assert (first[1000].mean, first[1000].standard_error, first[1000].count) == (3.5, None, 1)
    np.testing.assert_allclose((first[None].mean, first[None].standard_error), (3.125, 0.125))
    main_table, by_steps, *_ = tables((workplace / "report.md").read_text())
    assert [list(row.values())[1:] for row in by_steps] == [
        ["4.2500 ± 0.2500", "3.5000 ± – (n = 1)", "3.1250 ± 0.1250"],
        ["5.0000 ± –", "–", "–"],
        ["–", "–", "–"],
    ]
    assert list(by_steps[0])[1:] == ["T = 10", "T = 1000", "continuous"]
    # Totals that were evaluated differently say so.
    assert [row["time"] for row in main_table] == ["continuous", "continuous", "T = 1000"]


def test_variance_of_the_estimate(add, workplace):
    add("a0", 3.0, variance=(300.0, 28.0, 8))
    add("a1", 3.0, seed=1, variance=(200.0, 14.0, 8))
    add("b0", 3.0, train__batch_size=16, variance=(240.0, 15.0, 16))
    add("c0", 3.0, train__batch_size=32)
    made = dk.report(["a0", "a1", "b0", "c0"])
    found = [(v.variance, v.batch_variance) for v in made.variants]
    assert found == [(250.0, 168.0), (240.0, 240.0), (None, None)]
    rows = tables((workplace / "report.md").read_text())[0]
    assert [row["variance of a draw"] for row in rows] == ["250", "240", "–"]
    assert [row["of a batch x size"] for row in rows] == ["168", "240", "–"]


def test_a_number_that_is_none_is_a_dash(add, workplace):
    add("a", float("nan"))
    dk.report("a")
    assert tables((workplace / "report.md").read_text())[0][0]["test bits/dim"] == "–"


# --- variants and their names -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ([{}, {}], ["all"]),
        ([{}, {"train__steps": 60}], ["train.steps=30", "train.steps=60"]),
        (
            [{"network__multipliers": [1, 2]}, {"network__multipliers": [1]}],
            ["network.multipliers=[1,2]", "network.multipliers=[1]"],
        ),
        (
            [{"train__loss_steps": 10, "data__points": 5}, {}],
            ["data.points=5, train.loss_steps=10", "data.points=64, train.loss_steps=null"],
        ),
        # A configuration without an optimiser had AdamW.
        ([{}, {"optimiser": LION}], ["optimiser=adamw", "optimiser=lion"]),
        # What only one of two parts has is said if it is not its default.
        (
            [{"schedule__logsnr_max": None}, COSINE],
            ["schedule=linear_logsnr", "schedule=cosine"],
        ),
        (
            [COSINE, COSINE | {"schedule__shift": 0.5}, {}],
            [
                "schedule=cosine",
                "schedule=cosine, schedule.shift=0.5",
                "schedule=linear_logsnr, schedule.logsnr_max=9",
            ],
        ),
        # Parts that are not registered; of one name but of two modules.
        (
            [{"network": {"_target_": "mine.Net"}}, {"network": {"_target_": "theirs.Network"}}],
            ["network=Net", "network=Network"],
        ),
        (
            [{"network": {"_target_": "mine.Net"}}, {"network": {"_target_": "theirs.Net"}}],
            ["network=mine.Net", "network=theirs.Net"],
        ),
        # Parts inside parts.
        (
            [
                {"schedule": {"_target_": "a.Truncated", "schedule": CONFIG["schedule"]}},
                {"schedule": {"_target_": "a.Truncated", "schedule": COSINE["schedule"]}},
            ],
            [
                "schedule.schedule=linear_logsnr, schedule.schedule.logsnr_max=9",
                "schedule.schedule=cosine",
            ],
        ),
        # What is looked at is no other variant, and whole numbers are numbers.
        ([{"passes": 16, "sample_steps": 3}, {"schedule__logsnr_max": 9}], ["all"]),
        (
            [{"train__learning_rate": 0.1}, {"train__learning_rate": 0.1 + 1e-9}],
            ["train.learning_rate=0.1", "train.learning_rate=0.100000001"],
        ),
    ],
)
def test_names_of_variants(add, changes, names):
    for index, change in enumerate(changes):
        add(f"r{index}", 3.0, seed=index, **change)
    made = dk.report([f"r{index}" for index in range(len(changes))])
    assert [variant.name for variant in made.variants] == names


def test_a_run_that_is_older_than_an_option_had_its_default(add):
    older = {"_target_": "diffkit.schedules.Cosine", "_partial_": True}
    add("old", 3.0, schedule=older)
    add("new", 3.1, seed=1, **COSINE)
    add("other", 3.1, **COSINE | {"schedule__shift": 1.0})
    made = dk.report(["old", "new", "other"])
    assert [v.name for v in made.variants] == ["schedule.shift=0", "schedule.shift=1"]
    assert made.variants[0].seeds == (0, 1)


def test_long_names_are_shortened_and_stay_apart(add, workplace):
    many = {f"train__{name}": 0.123 for name in ("b1", "b2", "ema", "clip", "weight_decay")}
    add("a", 3.0, **many)
    add("b", 3.0, **COSINE)
    add("c", 3.0, **COSINE | many)
    names = [variant.name for variant in dk.report(["a", "b", "c"]).variants]
    assert names == [
        "schedule=linear_logsnr, train.b1=0.123 ...",
        "schedule=cosine, train.b1=0.9 ...",
        "schedule=cosine, train.b1=0.123 ...",
    ]
    settings = {
        row["setting"]: list(row.values())[1:] for row in tables((workplace / "report.md").read_text())[1]
    }
    assert settings["train.ema"] == ["0.123", "0.999", "0.123"]
    assert settings["schedule"] == ["linear_logsnr", "cosine", "cosine"]
    assert settings["schedule.shift"] == ["–", "0", "0"]
    assert "network" not in settings


# --- directories --------------------------------------------------------------------------------


def test_directories_of_runs_and_what_is_not_finished(add, workplace):
    add("sweep/b", 3.0, seed=1)
    add("sweep/a", 3.5, seed=0)
    add("sweep/deep/c", seed=2)
    (workplace / "sweep" / "a" / "checkpoints").mkdir()
    (workplace / "sweep" / "notes").mkdir()
    made = dk.report(["sweep", "sweep/../sweep/b", workplace / "sweep" / "a"])
    assert [str(path) for path in made.variants[0].runs] == ["sweep/a", "sweep/b"]
    assert [str(path) for path in made.unfinished] == ["sweep/deep/c"]
    page = (workplace / "report.md").read_text()
    assert "## Not finished\n\n* `sweep/deep/c`\n" in page
    assert page.count("sweep/deep/c") == 1
    main_table = tables(page)[0]
    assert [row["seeds"] for row in main_table] == ["2"]
    # What is in the runs does not tell where this machine keeps them.
    assert str(workplace) not in dk.report("sweep").path.read_text()
    # Without pictures to show there are none.
    assert {path.name for path in workplace.iterdir()} == {"report.md", "sweep"}


def test_bad_input_is_named_and_nothing_is_written(add, workplace):
    add("a", 3.0)
    dk.report("a")
    before = (workplace / "report.md").read_text()
    add("same", 3.0, samples=np.zeros((4, 2)))
    add("unfinished", seed=1)
    add("broken", 3.0, seed=2)
    (workplace / "broken" / "evaluation.json").write_text('{"total')
    add("partial", 3.0, seed=3)
    (workplace / "partial" / "evaluation.json").write_text('{"total_bits_per_dim": 1}')
    add("drawn", 3.0, seed=4)
    (workplace / "drawn" / "samples.npy").write_bytes(b"no array")
    add("words", 3.0, seed=5)
    (workplace / "words" / "config.yaml").write_text("train: 5\n")
    (workplace / "empty").mkdir()
    (workplace / "python" / "checkpoints").mkdir(parents=True)
    for runs, error, message in (
        ([], ValueError, "runs must name run directories, got none"),
        (["a", "nowhere"], FileNotFoundError, "there is no directory nowhere"),
        (["a", "empty"], FileNotFoundError, "there is no config.yaml in or below empty"),
        (["a", "python"], ValueError, "run python has no config.yaml"),
        (["unfinished"], ValueError, "one that is finished, .*; unfinished has none"),
        (["a", "same"], ValueError, "a and same have the same choices and the same train.seed=0"),
        (["a", "broken"], ValueError, "broken/evaluation.json must be a JSON file"),
        (["a", "partial"], ValueError, "it has no prior_bits_per_dim, reconstruction_bits"),
        (["drawn"], ValueError, "drawn/samples.npy must be an array of samples"),
        (["a", "words"], ValueError, r"words/config.yaml: train must be a mapping, got 5"),
    ):
        with pytest.raises(error, match=message):
            dk.report(runs)
    with pytest.raises(ValueError, match=r"out must be a Markdown page, .* got 'report.html'"):
        dk.report("a", out="report.html")
    assert (workplace / "report.md").read_text() == before
    assert {path.name for path in workplace.iterdir() if path.is_file()} == {"report.md"}


# --- pictures and the terminal ------------------------------------------------------------------


def test_running_mean_and_band():
    # 300 records: the mean of three, at the last of them.
    steps = np.arange(1.0, 301.0)
    values = np.random.default_rng(0).normal(size=300)
    records = [{"step": s, "loss": v} for s, v in zip(steps, values, strict=True)]
    records.insert(7, {"step": 7, "test_bits_per_dim": 1.0})
    smooth_steps, smooth = running_mean(recorded(records, "loss"))
    np.testing.assert_array_equal(smooth_steps, steps[2:])
    np.testing.assert_allclose(smooth[10], values[10:13].mean())
    # The second curve has no value at 20, and ends before 40.
    first = np.array([10.0, 20.0, 30.0, 40.0]), np.array([1.0, 2.0, 3.0, 4.0])
    second = np.array([5.0, 10.0, 30.0]), np.array([9.0, 5.0, 1.0])
    nothing = np.zeros(0), np.zeros(0)
    steps, mean, least, largest = band([first, nothing, second])
    np.testing.assert_array_equal(steps, [10, 20, 30])
    np.testing.assert_allclose(mean, [3, 2.5, 2])
    np.testing.assert_allclose(least, [1, 2, 1])
    np.testing.assert_allclose(largest, [5, 3, 3])
    assert all(len(row) == 0 for row in band([nothing]))


def test_samples_are_shown_side_by_side(workplace):
    from PIL import Image

    black, white = np.zeros((4, 1, 5, 5), np.uint8), np.full((4, 1, 5, 5), 16, np.uint8)
    save_samples(np.concatenate([black, white]), "one.png", levels=17)
    one = np.asarray(Image.open(workplace / "one.png"))
    # Three a row: 5 pixels each, one between and around them, enlarged 640 // 19 times.
    assert one.shape == (33 * 19, 33 * 19)
    centres = one[33 * 3 + 5 :: 33 * 6, 33 * 3 + 5 :: 33 * 6]
    np.testing.assert_array_equal(centres, [[0, 0, 0], [0, 255, 255], [255, 255, 255]])

    save_variant_samples({"dark $a$": black, "bright": white}, workplace / "two.png")
    two = np.asarray(Image.open(workplace / "two.png").convert("L"))
    left, right = np.array_split(two[two.shape[0] // 4 : -two.shape[0] // 4], 2, axis=1)
    assert (left < 5).mean() > 0.3
    assert (right < 5).mean() < 0.01
    save_variant_samples({"points": np.eye(2), "more": np.zeros((3, 1))}, workplace / "points.png")


def test_pictures_are_beside_the_page(add, workplace):
    add("a0", 3.0, seconds=3.0)
    add("a1", 3.0, seed=1, seconds=3.0, samples=np.arange(8.0).reshape(4, 2))
    add("b0", 3.0, seconds=3.0, samples=np.zeros((4, 3)), **COSINE)
    add("c0", 3.0, samples=np.zeros((4, 3, 2)), train__steps=60)  # of no picture
    dk.report(["a0", "a1", "b0", "c0"], out="deep/my page.md")
    page = (workplace / "deep" / "my page.md").read_text()
    links = re.findall(r"!\[.*\]\((.*)\)", page)
    assert links == ["my%20page_curves.png", "my%20page_samples.png"]
    names = {path.name for path in (workplace / "deep").iterdir()}
    assert names == {"my page.md", "my page_curves.png", "my page_samples.png"}
    for name in names - {"my page.md"}:
        assert (workplace / "deep" / name).read_bytes().startswith(b"\x89PNG")


def test_show(add, capsys):
    add("a", 3.25, at_steps=[evaluation(5.0, steps=10)])
    add("b", 3.0, network__multipliers=[2, 2])
    add("c", train__steps=60)
    made = dk.report(["a", "b", "c"])
    made.show()
    out = capsys.readouterr().out
    assert "different data" not in out
    for text in (
        "network.multipliers=[2,2]",
        "-0.2500",
        "T = 10",
        "5.0000",
        "0.0321",
        "not finished: c",
    ):
        assert text in out
    assert max(map(len, out.splitlines())) <= 160
    add("d", 3.0, data__points=5)
    dk.report(["a", "d"]).show()
    assert "The variants have different data" in capsys.readouterr().out


# --- the command line ---------------------------------------------------------------------------

SMALL = [
    *("data=swirl", "data.points=64", "network=mlp", "network.width=8", "network.depth=1"),
    *(
        "schedule=linear_logsnr",
        "train.steps=6",
        "train.steps_per_dispatch=3",
        "train.batch_size=8",
    ),
    *("passes=1", "samples=0"),
]


def stamps(path):
    """Every file below a directory with the time at which it was written."""
    return {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_train_seeds_and_report(workplace, capfd):
    command = ["train", "--multirun", *SMALL, "train.seed=0,1", "root=sweep"]
    command += ["evaluate_steps=[4,null]", "variance=true"]
    main(command)
    first = capfd.readouterr().out
    runs = sorted((workplace / "sweep").iterdir())
    assert len(runs) == 2
    # `root` and what is looked at are no part of the name.
    assert [run.name.partition("train.seed-")[2][0] for run in runs] == ["0", "1"]
    assert not any(word in run.name for run in runs for word in ("root", "evaluate", "variance"))
    records = [json.loads((run / "evaluation.json").read_text()) for run in runs]
    for run, record in zip(runs, records, strict=True):
        assert [at["steps"] for at in record["at_steps"]] == [4, None]
        assert record["at_steps"][0]["total_bits_per_dim"] > record["total_bits_per_dim"]
        # Evaluated with the same draws, in continuous time twice.
        again = record["at_steps"][1]
        assert again == {key: value for key, value in record.items() if key != "at_steps"}
        variance = json.loads((run / "variance.json").read_text())
        assert variance["batch_size"] == 8
        assert (variance["schedule"], variance["weighting"]) == ("linear_logsnr", "elbo")
        assert (run / "variance.png").exists()
        assert is_finished(run, yaml.safe_load((run / "config.yaml").read_text()))
    assert records[0] != records[1]

    # The same command does not train again, and says what was found.
    before = stamps(workplace / "sweep")
    main(command)
    out = capfd.readouterr().out
    assert stamps(workplace / "sweep") == before
    assert out.count("which is finished") == 2
    assert "steps/s" in first
    assert "steps/s" not in out
    last = re.findall("test bits/dim: .*", first)
    assert len(last) == 2
    assert re.findall("test bits/dim: .*", out) == last

    main(["report", "sweep", "out=found/page.md"])
    out = capfd.readouterr().out
    assert out.splitlines()[-1] == "found/page.md"
    totals = [record["total_bits_per_dim"] for record in records]
    (row,), (by_steps,), _ = tables((workplace / "found" / "page.md").read_text())
    assert row["test bits/dim"] == f"{np.mean(totals):.4f}"
    assert row["s.e."] == f"{abs(totals[0] - totals[1]) / 2:.4f}"
    assert row["test bits/dim"] in out
    at_four = [record["at_steps"][0]["total_bits_per_dim"] for record in records]
    assert by_steps["T = 4"].split()[0] == f"{np.mean(at_four):.4f}"
    names = {path.name for path in (workplace / "found").iterdir()}
    assert names == {"page.md", "page_curves.png", "page.request.json"}
    assert stamps(workplace / "sweep") == before


def test_what_was_evaluated_otherwise_is_evaluated_again(workplace):
    config = configuration()
    run = workplace / "run"
    assert not is_finished(run, config)
    write_config(run, config)
    assert not is_finished(run, config)
    (run / "evaluation.json").write_text("{}")
    assert is_finished(run, config)
    write_config(run, config)
    assert is_finished(run, config)
    more = config | {"evaluate_steps": [10]}
    assert not is_finished(run, more)
    with pytest.raises(ValueError, match=r"holds a run with other choices: train.seed \(0 there, 1"):
        write_config(run, configuration(train__seed=1))
    assert is_finished(run, config)
    # Its evaluation was another: it is taken away, so that no report takes it for the new one.
    write_config(run, more)
    assert not (run / "evaluation.json").exists()
    assert not is_finished(run, more)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report"], "RUN is missing: diffkit report RUN"),
        (["report", "nowhere"], "there is no directory nowhere"),
        (["report", "nowhere", "out=page.html"], "out must be a Markdown page"),
        (
            ["train", "evaluate_steps=[10,0]"],
            "evaluate_steps must be a list of numbers of at least 1",
        ),
        (["train", "evaluate_steps=10"], "evaluate_steps"),
    ],
)
def test_mistakes_are_named_without_a_stack_trace(workplace, capfd, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code not in (0, None)
    err = capfd.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not list(workplace.iterdir())
