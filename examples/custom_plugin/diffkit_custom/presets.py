"""A preset: a named choice of every part, with the loss behind its weighting."""

import diffkit as dk
from diffkit_custom.weightings import Window

CUSTOM = dk.register("preset", "custom")(
    dk.Preset(
        schedule=("custom_bent", {"bend": 0.3}),
        parameterization="v",
        weighting=("custom_window", {"centre": 2.0}),
        time_sampler="stratified",
        sampler="custom_ralston",
        grid="uniform_logsnr",
        network=("mlp", {"width": 64, "depth": 2}),
        train={"learning_rate": 2e-3, "steps": 1000},
        loss=dk.Loss(factor=Window(2.0, 4.0)),
    )
)
"""Parts of this plugin and of diffkit together, for small images or points."""
