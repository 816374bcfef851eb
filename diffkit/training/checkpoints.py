"""Checkpoints on disk, by orbax: the arrays of a state by their paths, and a few plain numbers."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

_ADVICE = " If the composition is the same, another version wrote it: use that one, or train anew."


class CheckpointError(ValueError):
    """A checkpoint does not fit the state that it should be restored into."""


def _named_arrays(tree: PyTree) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(tree, eqx.is_array))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


class Checkpoints:
    """The checkpoints of one run.

    A checkpoint becomes visible only when complete: a process killed while writing leaves the previous
    one in force.

    **Arguments:** `directory`: where to store them, created if missing; `keep`: how many of the newest to
    keep.
    """

    def __init__(self, directory: Path, *, keep: int = 2):
        # Heavy, so imported when the first run needs it.
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)
        self._args = ocp.args

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or `None` if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: PyTree, numbers: dict[str, float]) -> None:
        """Write a checkpoint, unless there is one for this step already."""
        if step in self._manager.all_steps():
            return
        # Copied because training reuses the memory of the state.
        arrays = {name: np.array(leaf) for name, leaf in _named_arrays(state).items()}
        args = self._args
        both = args.Composite(state=args.StandardSave(arrays), numbers=args.JsonSave(numbers))
        self._manager.save(step, args=both)
        self._manager.wait_until_finished()

    def restore(
        self, step: int, like: PyTree, *, beside: tuple[str, ...] = ()
    ) -> tuple[PyTree, dict[str, float]]:
        """The state of a checkpoint.

        **Arguments:** `step`; `like`: a state of the same structure, whose arrays are replaced;
        `beside`: fields of the checkpoint to ignore.

        **Raises:** `CheckpointError`, naming the first array that is missing or has another shape.
        """
        args = self._args
        both = args.Composite(state=args.StandardRestore(), numbers=args.JsonRestore())
        restored = self._manager.restore(step, args=both)
        wanted, stored = _named_arrays(like), restored["state"].items()
        found = {name: array for name, array in stored if name.split(".")[0] not in beside}
        missing, extra = wanted.keys() - found.keys(), found.keys() - wanted.keys()
        if missing or extra:
            apart = all(name.startswith("optimiser.") for name in missing | extra)
            raise CheckpointError(
                f"the checkpoint of step {step} holds another {'optimiser' if apart else 'model'}: "
                f"missing {sorted(missing)[:3]}, not expected {sorted(extra)[:3]}.{_ADVICE}"
            )
        for name, leaf in wanted.items():
            if found[name].shape != leaf.shape:
                raise CheckpointError(
                    f"the checkpoint of step {step} holds another model: {name} has shape "
                    f"{found[name].shape}, expected {leaf.shape}.{_ADVICE}"
                )
        leaves = [jnp.asarray(found[name], leaf.dtype) for name, leaf in wanted.items()]
        dynamic, static = eqx.partition(like, eqx.is_array)
        dynamic = jax.tree.unflatten(jax.tree.structure(dynamic), leaves)
        return eqx.combine(dynamic, static), restored["numbers"]

    def close(self) -> None:
        """Wait for pending writes."""
        self._manager.close()
