"""What the tests of diffkit and of its plugins share: compilers in a hurry, and a limit on memory maps."""

import gc
from pathlib import Path

import jax
import pytest

# Linux allows a process 65,530 of them. Each compiled function takes some, and beyond XLA crashes.
_MANY = 20_000
_MAPS = Path("/proc/self/maps")


def pytest_configure(config):
    if config.option.markexpr == "not slow":
        # Compilation is most of the fast tests' time. The slow ones, the laws and the pages run optimised code.
        jax.config.update("jax_disable_most_optimizations", True)


def _count() -> int:
    return _MAPS.read_bytes().count(b"\n") if _MAPS.exists() else 0


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    """After a module frees what was compiled, if that is much."""
    yield
    if _count() > _MANY:
        jax.clear_caches()
        gc.collect()
