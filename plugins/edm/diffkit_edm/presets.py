"""EDM as a preset: its parts, and the source of each constant.

"The paper" is Karras, Aittala, Aila and Laine 2022 (arXiv 2206.00364), "the code" its published
implementation (github.com/NVlabs/edm). According to its README the checkpoint cifar10-32x32-uncond-vp uses
train.py's defaults with `--cond=0 --arch=ddpmpp`.
"""

import diffkit as dk

_BATCH = 512  # table 7 of the paper; --batch of the code

EDM = dk.register("preset", "edm")(
    dk.Preset(
        data_std=0.5,  # sigma_data, table 1
        schedule="log_normal",  # P_mean -1.2, P_std 1.2, sigma from 0.002 to 80: table 1
        process="variance_exploding",
        parameterization="edm_f",
        # Equation 8: the plain error of F over the schedule's own times. sigma_data is data_std.
        weighting=("edm", {"sigma_data": None}),
        loss=dk.Loss(),
        time_sampler="uniform",  # independent noise levels
        sampler="edm_heun",  # generate.py for CIFAR-10: without churn
        grid="rho",  # rho = 7, table 1
        sample_steps=18,  # 35 network calls, table 2
        decoder="discretized",
        # DDPM++ in train.py: 128 channels, multipliers 2, 2, 2 over 32x32, 16x16 and 8x8, dropout 0.13
        # (table 7). Four blocks each and attention at 16x16 are defaults of SongUNet in networks.py.
        network=(
            "unet",
            {
                "width": 128,
                "multipliers": (2, 2, 2),
                "depth": 4,
                "attention": (1,),
                "dropout": 0.13,
            },
        ),
        train={
            "steps": 200_000_000 // _BATCH,  # 200 million images, table 7
            "batch_size": _BATCH,
            "learning_rate": 1e-3,  # table 7, --lr
            # Over 10 million images, table 7; from a rate of 0, training_loop.py.
            "warmup": 10_000_000 // _BATCH,
            "decay": "constant",  # training_loop.py: none
            "weight_decay": 0.0,  # train.py: Adam, with these betas
            "b1": 0.9,
            "b2": 0.999,
            "clip": 0.0,  # training_loop.py: none
            # A half-life of 0.5 million images, table 7, --ema. It has a ramp, though not ours.
            "ema": 0.5 ** (_BATCH / 500_000),
            "checkpoint_every": 10_000,  # ours
        },
    )
)
"""EDM with the paper's hyper-parameters for unconditional CIFAR-10 (configuration F, DDPM++).

Not here: its augmentation of the data, and its re-arranged U-Net (`unet` is the nearest). The ramp of the
moving average is another one: see docs/plugins/edm.md.
"""
