"""VDM as a preset: which parts make it up."""

import diffkit as dk

VDM = dk.register("preset", "vdm")(
    dk.Preset(
        schedule=("learned_monotone", {"minimise_variance": True}),
        process="variance_preserving",
        parameterization="epsilon",
        weighting="elbo",
        time_sampler="low_discrepancy",
        sampler="ancestral",
        grid="uniform_t",
        decoder="discretized",
        network=("vdm_unet", {"width": 32, "depth": 4, "dropout": 0.05, "groups": 8}),
        train={"learning_rate": 3e-3, "batch_size": 64, "steps": 1800},
    )
)
"""VDM at a size that two CPU cores train on 8x8 digits in a few minutes."""

VDM_CIFAR10 = dk.register("preset", "vdm_cifar10")(
    dk.Preset(
        schedule="learned_linear",
        process="variance_preserving",
        parameterization="epsilon",
        weighting="elbo",
        time_sampler="low_discrepancy",
        sampler="ancestral",
        grid="uniform_t",
        decoder="discretized",
        network=("vdm_unet", {"width": 128, "depth": 32, "dropout": 0.1, "fourier": (6, 7)}),
        # The settings of the reference's configuration for CIFAR-10 without augmentation.
        train={
            "steps": 10_000_000,
            "batch_size": 128,
            "learning_rate": 2e-4,
            "warmup": 100,
            "decay": "constant",
            "weight_decay": 0.01,
            "b1": 0.9,
            "b2": 0.99,
            "clip": 0.0,
            "ema": 0.9999,
            "checkpoint_every": 10_000,
        },
    )
)
"""VDM with the hyper-parameters of the paper for CIFAR-10 (appendix B and the published code)."""
