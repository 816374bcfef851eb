"""Public names and optional packages, imported on first use."""

import ast
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from typing import Any


def needed(module: str, why: str) -> Any:
    """A module of the extra `train`, or an `ImportError` that begins with `why` and says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{why}: pip install 'diffkit[train]'") from error


def lazy_imports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package that imports its public names lazily (PEP 562).

    These are its modules, and the names that its source imports `as` themselves, as static type checkers
    have it. `package` is its `__name__`.

    ```python
    if TYPE_CHECKING:
        from my_package.codec import Codec as Codec

    __getattr__, __dir__ = lazy_imports(__name__)
    ```
    """
    module = sys.modules[package]
    homes = {
        alias.name: node.module
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
        if alias.asname == alias.name
    }
    modules = {info.name for info in pkgutil.iter_modules(module.__path__)}

    def get(name: str) -> Any:
        if name == "__all__":
            return sorted(homes)
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        if name in homes:
            value = getattr(importlib.import_module(homes[name]), name)
            setattr(module, name, value)
            return value
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        return sorted({*homes, *modules, *(name for name in vars(module) if name.startswith("__"))})

    return get, names
