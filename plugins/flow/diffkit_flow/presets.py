r"""Flow matching and rectified flow as presets: their parts, and the source of each constant.

In both papers the time along the path runs over all of [0, 1]. Here it is cut off at the endpoints of log
SNR, 13.3 for 256 levels of the data and -10 at the noise end: $\tau$ from 0.0013 to 0.9933. The networks
are `unet` with the published width, depth and attention, its input scaled to unit variance.
"""

from collections.abc import Mapping
from typing import Any

import diffkit as dk


def _unet(**options: Any) -> tuple[str, Mapping[str, Any]]:
    return "unet", options


_COMMON: Mapping[str, Any] = {
    "schedule": ("straight_line", {"logsnr_min": -10.0}),
    "process": "straight",  # equation 22 of flow matching, with sigma_min = 0
    "parameterization": "velocity",  # equation 23
    "grid": "uniform_t",
    "decoder": "discretized",
}

FLOW_MATCHING = dk.register("preset", "flow_matching")(
    dk.Preset(
        weighting="simple",
        loss=dk.Loss(),
        time_sampler="uniform",  # equation 9
        sampler="midpoint",  # section 6.2, for few steps; the paper's tables are from dopri5
        # Appendix E, table 3, column CIFAR10: 256 channels, multipliers 1, 2, 2, 2, depth 2, attention
        # at 16x16, no dropout.
        network=_unet(width=256, multipliers=(1, 2, 2, 2), depth=2, attention=(1,), dropout=0.0),
        train={
            # Table 3: 391k iterations of 256 images, Adam, 5e-4 with 45k steps of warm-up.
            "steps": 391_000,
            "batch_size": 256,
            "learning_rate": 5e-4,
            "warmup": 45_000,
            # Appendix E.2: "polynomial", a straight line down to 1e-8 at the last step. The cosine is the
            # nearest.
            "decay": "cosine",
            "weight_decay": 0.0,  # appendix E.2, as are the betas
            "b1": 0.9,
            "b2": 0.999,
            "clip": 0.0,  # the paper names none
            # Not in the paper, but of Dhariwal and Nichol 2021, whose network it uses: one rate for all
            # steps (update_ema in nn.py of github.com/openai/guided-diffusion).
            "ema": 0.9999,
            "ema_warmup": False,
            "checkpoint_every": 10_000,  # ours
        },
        **_COMMON,
    )
)
"""Flow matching with optimal transport paths (Lipman et al. 2023, arXiv 2210.02747) for CIFAR-10.

Times are uniform; the loss is the plain error of the velocity.
"""

RECTIFIED_FLOW = dk.register("preset", "rectified_flow")(
    dk.Preset(
        # Esser et al. 2024, section 3.1 and table 1: rf/lognorm(0.00, 1.00). Liu et al. have uniform
        # times: `weighting.times=uniform time_sampler=uniform`.
        weighting=("simple", {"times": "logit_normal"}),
        loss=dk.Loss(times="logit_normal"),
        time_sampler="logit_normal",
        sampler="euler",  # Esser et al.; the file below has RK45, of which Euler is the alternative
        # ImageGeneration/configs/rectified_flow/cifar10_rf_gaussian_ddpmpp.py of the code of Liu et al.
        # (DDPM++).
        network=_unet(width=128, multipliers=(1, 2, 2, 2), depth=4, attention=(1,), dropout=0.15),
        train={
            # The same file. The code is derived from github.com/yang-song/score_sde_pytorch, whose
            # models/ema.py has a ramp.
            "ema": 0.999999,
            # ImageGeneration/configs/default_cifar10_configs.py of the same code.
            "steps": 1_300_001,
            "batch_size": 128,
            "learning_rate": 2e-4,
            "warmup": 5000,  # from a rate of 0: `optimization_manager` in losses.py
            "decay": "constant",
            "weight_decay": 0.0,
            "b1": 0.9,
            "b2": 0.999,  # `get_optimizer` in losses.py
            "clip": 1.0,
            "checkpoint_every": 10_000,  # `training.snapshot_freq_for_preemption`
        },
        **_COMMON,
    )
)
"""Rectified flow (Liu, Gong and Liu 2023, arXiv 2209.03003) for CIFAR-10, with logit-normal times.

Network and optimiser are from the published code (github.com/gnobitab/RectifiedFlow), the times from Esser
et al. 2024 (arXiv 2403.03206), who found them the best of many. Without reflow.
"""
