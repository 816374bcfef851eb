"""What the tests of diffkit and of its plugins share: compilers in a hurry, and a limit on memory maps.

With `--share 0.2` those fast tests run that took least in the last `make test`, up to this share of its
time: most tests, in a fifth of the time, for `make versions`.
"""

import collections
import gc
from pathlib import Path

import jax
import pytest

# Linux allows a process 65,530 of them. Each compiled function takes some, and beyond XLA crashes.
_MANY = 20_000
_MAPS = Path("/proc/self/maps")
_FAST = "not slow"
_SECONDS = "diffkit/seconds"  # in pytest's cache, by the test's id
_seconds: collections.Counter[str] = collections.Counter()


def pytest_addoption(parser):
    parser.addoption("--share", type=float, help="of the time of the fast tests, as last measured")


def pytest_configure(config):
    if config.option.markexpr == _FAST:
        # Most of the fast tests' time is compilation. The slow ones and the laws run optimised code.
        jax.config.update("jax_disable_most_optimizations", True)


def pytest_collection_modifyitems(config, items):
    share = config.getoption("--share")
    if share is None:
        return
    known = config.cache.get(_SECONDS, {})
    limit, chosen = share * sum(known.values()), set()
    for name, seconds in sorted(known.items(), key=lambda test: test[1]):
        limit -= seconds
        if limit < 0:
            break
        chosen.add(name)
    # A test that was not measured runs.
    config.hook.pytest_deselected(items=[i for i in items if i.nodeid in known and i.nodeid not in chosen])
    items[:] = [i for i in items if i.nodeid not in known or i.nodeid in chosen]


def pytest_runtest_logreport(report):
    _seconds[report.nodeid] += report.duration


def pytest_sessionfinish(session):
    config = session.config
    whole = not hasattr(config, "workerinput") and not config.args_source.name.startswith("ARGS")
    if whole and config.option.markexpr == _FAST and config.getoption("--share") is None:
        config.cache.set(_SECONDS, dict(_seconds))


def _count() -> int:
    return _MAPS.read_bytes().count(b"\n") if _MAPS.exists() else 0


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    """After a module frees what was compiled, if that is much."""
    yield
    if _count() > _MANY:
        jax.clear_caches()
        gc.collect()
