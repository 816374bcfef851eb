"""Optimisers: how a gradient becomes a step."""

import diffkit as dk


@dk.register("optimiser", "custom_adamax")
class Adamax(dk.AbstractOptimiser):
    """Adam with the largest gradient instead of the mean square (arXiv 1412.6980, algorithm 2).

    **Arguments:** `b1`, `b2`: decay rates, by default `train.b1` and `train.b2`.
    """

    b1: float | None = None
    b2: float | None = None

    def transformation(self, learning_rate, decays):
        """The optax transformation."""
        import optax

        return optax.adamax(learning_rate, **vars(self))
