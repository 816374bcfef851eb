"""VDM as a preset. The parts that are not named are the defaults of `diffkit.Preset`, which are VDM's."""

import diffkit as dk

VDM = dk.register("preset", "vdm")(
    dk.Preset(
        schedule=("learned_monotone", {"minimise_variance": True}),
        network=("vdm_unet", {"width": 32, "depth": 4, "dropout": 0.05, "groups": 8}),
        train={"learning_rate": 3e-3, "batch_size": 64, "steps": 1800},
    )
)
"""VDM at a size that two CPU cores train on 8x8 digits in a few minutes."""

VDM_CIFAR10 = dk.register("preset", "vdm_cifar10")(
    dk.Preset(
        # `gamma_type` "learnable_scalar" from -13.3 to 5, which are the defaults for 256 levels.
        schedule="learned_linear",
        # `sm_n_embd`, `sm_n_layer`, `sm_pdrop`; the frequencies are ScoreUNet's in model_vdm.py.
        network=("vdm_unet", {"width": 128, "depth": 32, "dropout": 0.1, "fourier": (6, 7)}),
        train={
            "steps": 10_000_000,  # `training`, to the batch size
            "batch_size": 128,
            "warmup": 100,  # from a rate of 0: get_lr_schedule in experiment.py
            "learning_rate": 2e-4,  # `optimizer`, from here to `ema`
            "decay": "constant",
            "weight_decay": 0.01,
            "decay_biases": False,  # decay_mask_fn in experiment.py
            "b1": 0.9,
            "b2": 0.99,
            "clip": 0.0,  # no `gradient_clip_norm`
            "ema": 0.9999,
            "ema_warmup": False,  # apply_gradients in train_state.py: one rate for all steps
            "checkpoint_every": 10_000,  # `steps_per_save`
        },
    )
)
"""VDM with the published hyper-parameters for CIFAR-10 without augmentation.

They and the names in the comments come from `configs/cifar10.py` in github.com/google-research/vdm;
docs/plugins/vdm.md lists the differences.
"""
