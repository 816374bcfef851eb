"""Any part runs with any other: every preset with every sampler, and every pair of choices.

Nothing is listed here: the presets, the kinds and the names come from the registry, installed plugins
included, and every model is made by the configuration system, as on the command line.
"""

import functools
import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

import diffkit as dk
from diffkit.cli.launch import compose
from diffkit.configs import make, preset_of
from diffkit.presets import TRAINING_KINDS, DataSpec, assemble, check_target, complete, part
from diffkit.training import Objective, init_state
from diffkit.training.state import train_step

# OmegaConf's containers are generics of the old kind, which beartype remarks on where one is annotated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*MutableMapping.*:beartype.roar.BeartypeDecorHintPep585DeprecationWarning"
)

TRAINING = ("schedule", "process", "parameterization", "weighting", "time_sampler")
SAMPLING = ("sampler", "grid")
KINDS = TRAINING + SAMPLING
CHOICES = {kind: dk.available(kind) for kind in KINDS}
# One step is taken, which a warm-up would give a learning rate of zero.
SMALL = ["network=mlp", "network.width=8", "network.depth=1", "train.warmup=0"]
STEPS, BATCH = 6, 8
GROUPS = 12  # of rows, each a test of its own, so that workers can share them

Row = dict[str, str]


@pytest.fixture(autouse=True, scope="module")
def hurry():
    """Compile without optimisation: nearly all of the time is compilation, and no number is compared."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def pairs(row: Row) -> set[frozenset[tuple[str, str]]]:
    return {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}


def every_pair(kinds: Sequence[str]) -> set[frozenset[tuple[str, str]]]:
    return {
        frozenset([(a, x), (b, y)])
        for a, b in itertools.combinations(kinds, 2)
        for x in CHOICES[a]
        for y in CHOICES[b]
    }


@functools.cache
def parts_of(kind: str) -> dict[str, Any]:
    context = {"levels": 8, "data_std": 1.0, "key": jax.random.key(0)}
    return {name: complete(dk.get(kind, name), context) for name in CHOICES[kind]}


@functools.cache
def meaningful(schedule: str, process: str, parameterization: str) -> bool:
    """Whether these go together; a preset with three that do not is refused."""
    maximum, minimum = parts_of("schedule")[schedule].endpoints
    try:
        check_target(
            parts_of("parameterization")[parameterization],
            parts_of("process")[process],
            (float(maximum), float(minimum)),
        )
    except ValueError:
        return False
    return True


def possible(row: Row) -> bool:
    chosen = [row.get(kind) for kind in ("schedule", "process", "parameterization")]
    return None in chosen or meaningful(*chosen)


def filled(row: Row, kinds: Sequence[str], missing: set[Any], rng: random.Random) -> Row:
    """The row with a choice for each further kind: the one that covers most of what is missing."""
    for kind in sorted(set(kinds) - row.keys(), key=lambda k: (-len(CHOICES[k]), k)):
        names = rng.sample(CHOICES[kind], len(CHOICES[kind]))
        names = [name for name in names if possible(row | {kind: name})]
        gains = {n: sum(frozenset([(kind, n), o]) in missing for o in row.items()) for n in names}
        row = row | {kind: max(names, key=gains.__getitem__)}
    return row


def covering_array() -> list[tuple[Row, list[Row]]]:
    """Choices for training, each with choices for sampling, that cover every pair of two kinds.

    By a greedy search, first over the kinds for training alone: a row of those is compiled once, however
    many samplers then follow it.
    """
    rng = random.Random(0)
    missing, training = every_pair(TRAINING), []
    while missing:
        training.append(filled(dict(min(missing, key=sorted)), TRAINING, missing, rng))
        missing -= pairs(training[-1])
    missing, sampling = every_pair(KINDS), [[] for _ in training]
    for row in training:
        missing -= pairs(row)
    while missing:
        chosen = [
            (filled({"sampler": name} | row, KINDS, missing, rng), index)
            for index, row in enumerate(training)
            for name in CHOICES["sampler"]
        ]
        best, index = max(chosen, key=lambda pair: len(pairs(pair[0]) & missing))
        assert pairs(best) & missing
        missing -= pairs(best)
        sampling[index].append({kind: best[kind] for kind in SAMPLING})
    return list(zip(training, sampling, strict=True))


ROWS = covering_array()


@pytest.fixture(autouse=True)
def clean_state():
    """Hydra's global state is put back, and the memory of hundreds of compiled functions freed."""
    state = ConfigStore.get_state()
    yield
    ConfigStore.set_state(state)
    GlobalHydra.instance().clear()
    jax.clear_caches()


DATA = np.random.default_rng(0).integers(0, 8, (BATCH, 2), dtype=np.uint8)


def composed(overrides):
    """The model and the parts for training and sampling that a configuration describes."""
    config = compose("train", [*overrides, *SMALL])
    made = assemble(preset_of(config), DataSpec((2,), 8), key=jax.random.key(1))
    parts = {kind: getattr(made, kind) for kind in TRAINING_KINDS}
    return made.model, parts, make(config["train"])


def step(model, parts, config):
    """The model after one training step, its loss and gradient norm."""
    state = init_state(model, config, parts["time_sampler"])
    objective = Objective(parts["weighting"], config.loss_steps)

    @eqx.filter_jit
    def run(state):
        return train_step(state, jnp.asarray(DATA), jax.random.key(2), objective, config)

    state, metrics = run(state)
    return state.model, metrics


def moved(before, after):
    """Whether training changed a parameter."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return any(eqx.is_inexact_array(a) and not np.array_equal(a, b) for a, b in pairs)


def check_samples(model, sampler, grid):
    path = dk.sample_trajectory(model, sampler, 3, key=jax.random.key(3), steps=STEPS, grid=grid)
    assert path.samples.shape == (3, 2)
    assert np.all((np.asarray(path.samples) >= 0) & (np.asarray(path.samples) < 8))
    # Integers are always finite; the latents before them must be, too.
    assert np.all(np.isfinite(path.z))


def test_the_array_covers_every_pair():
    whole = [row | more for row, sampling in ROWS for more in sampling]
    expected = sum(len(CHOICES[a]) * len(CHOICES[b]) for a, b in itertools.combinations(KINDS, 2))
    assert len(set().union(*map(pairs, whole), *(pairs(row) for row, _ in ROWS))) == expected
    longest = sorted(map(len, CHOICES.values()))[-2:]
    assert len(whole) <= 2 * math.prod(longest), "the search has become wasteful"


def test_what_means_nothing_is_refused_before_work_begins():
    # Not every three go together, and most do.
    chosen = [CHOICES[kind] for kind in ("schedule", "process", "parameterization")]
    refused = [row for row in itertools.product(*chosen) if not meaningful(*row)]
    assert 0 < len(refused) < 0.1 * math.prod(map(len, chosen))
    for schedule, process, parameterization in refused:
        with pytest.raises(ValueError, match=r"does not determine x at the noise end .* would count"):
            composed(
                [
                    f"schedule={schedule}",
                    f"process={process}",
                    f"parameterization={parameterization}",
                ]
            )


@pytest.mark.slow
@pytest.mark.parametrize("group", range(GROUPS))
def test_every_pair_of_choices_trains_and_samples(group):
    for row, sampling in ROWS[group::GROUPS]:
        overrides = [f"{kind}={name}" for kind, name in row.items()]
        model, parts, config = composed(overrides)
        after, metrics = step(model, parts, config)
        assert np.all(np.isfinite(metrics)), overrides
        assert moved(model, after), overrides
        for more in sampling:
            chosen = compose("train", [*overrides, *(f"{k}={n}" for k, n in more.items())])
            sampler, grid = (part(kind, make(chosen[kind]), model=after) for kind in SAMPLING)
            check_samples(after, sampler, grid)


@pytest.mark.slow
@pytest.mark.parametrize("preset", dk.available("preset"))
def test_every_preset_with_every_sampler(preset):
    model, parts, config = composed([f"preset={preset}"])
    after, metrics = step(model, parts, config)
    assert np.all(np.isfinite(metrics))
    assert moved(model, after)
    for name in dk.available("sampler"):
        check_samples(after, part("sampler", name, model=after), parts["grid"])
