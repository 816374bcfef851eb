"""DDPM, improved DDPM and simple diffusion as presets: their parts, and the source of each.

The networks are diffkit's `unet` at the published size. It differs from the published ones in details:
it adds its input to its output, has as many blocks on the way up as on the way down (they have one
more), halves by averages where they use a strided convolution, and its attention has one head.
"""

import math
from collections.abc import Mapping
from typing import Any

import diffkit as dk


def _unet(**options: Any) -> tuple[str, Mapping[str, Any]]:
    return "unet", options


_COMMON: Mapping[str, Any] = {
    "process": "variance_preserving",
    "loss": dk.Loss(parameterization="epsilon"),
    "time_sampler": "uniform",  # algorithm 1 of DDPM
    "decoder": "discretized",
}
# Adam without weight decay, and after the warm-up a constant rate: make_optimizer and get_warmed_up_lr in
# diffusion_tf/utils.py of DDPM, scripts/image_train.py and PyTorch's own betas for improved DDPM.
_ADAM: Mapping[str, Any] = {"decay": "constant", "weight_decay": 0.0, "b1": 0.9, "b2": 0.999}

DDPM = dk.register("preset", "ddpm")(
    dk.Preset(
        schedule="linear_beta",  # section 4: T = 1000, beta from 1e-4 to 0.02
        parameterization="epsilon",
        weighting="simple",  # equation 14
        sampler=("ancestral", {"spread": 1.0}),  # section 3.2; "fixedlarge" in the code
        grid="uniform_t",
        # Appendix B: four resolutions from 32 to 4, two blocks each, attention at 16x16, dropout 0.1.
        # Width 128 and the multipliers are from scripts/run_cifar.py of the code.
        network=_unet(width=128, multipliers=(1, 2, 2, 2), depth=2, attention=(1,), dropout=0.1),
        train={
            # Appendix B: Adam at its standard values, 2e-4, batch 128, EMA 0.9999, 800k steps.
            "steps": 800_000,
            "batch_size": 128,
            "learning_rate": 2e-4,
            "ema": 0.9999,
            # make_ema in diffusion_tf/tpu_utils/tpu_utils.py: one decay, after a first step that copies.
            "ema_warmup": False,
            **_ADAM,
            "warmup": 5000,  # scripts/run_cifar.py, as is `clip`
            "clip": 1.0,
            "checkpoint_every": 10_000,  # ours: the code saves by the clock
        },
        **_COMMON,
    )
)
"""DDPM (Ho, Jain and Abbeel 2020, arXiv 2006.11239) for CIFAR-10.

Hyper-parameters: section 4 and appendix B, and the published code (github.com/hojonathanho/diffusion,
scripts/run_cifar.py), which also mirrors images at random. 999 steps visit all 1000 noise levels; from
the first one, of noise 0.01, the decoder leads to the data.
"""

_IDDPM_LEVELS = 4000  # README of the code, CIFAR-10: --diffusion_steps 4000

IDDPM = dk.register("preset", "iddpm")(
    dk.Preset(
        schedule=("iddpm_cosine", {"steps": _IDDPM_LEVELS}),
        # Equation 16: 0.001, the default of the part.
        parameterization=("epsilon_range", {"steps": _IDDPM_LEVELS - 1}),
        weighting="simple",
        sampler="ancestral",  # with the predicted variances
        grid=("respaced", {"timesteps": _IDDPM_LEVELS}),
        # README: --num_channels 128 --num_res_blocks 3 --dropout 0.3; script_util.py: the multipliers
        # for 32x32, and attention at 16x16 and 8x8.
        network=_unet(width=128, multipliers=(1, 2, 2, 2), depth=3, attention=(1, 2), dropout=0.3),
        train={
            "steps": 500_000,  # README: the checkpoint cifar10_uncond_50M_500K
            # README: --lr 1e-4 --batch_size 128.
            "batch_size": 128,
            "learning_rate": 1e-4,
            # scripts/image_train.py: weight_decay 0, lr_anneal_steps 0, ema_rate 0.9999, save_interval
            # 10000. train_util.py has neither a warm-up nor clipping.
            "warmup": 0,
            **_ADAM,
            "clip": 0.0,
            "ema": 0.9999,
            "ema_warmup": False,  # update_ema in nn.py: one rate for all steps
            "checkpoint_every": 10_000,
        },
        **_COMMON,
    )
)
"""Improved DDPM (Nichol and Dhariwal 2021, arXiv 2102.09672) for CIFAR-10 with the hybrid loss.

Hyper-parameters: those of "Unconditional CIFAR-10 with our L_hybrid objective and cosine noise schedule"
in the README of the published code (github.com/openai/improved-diffusion), and its defaults.
"""

# Equation 5: 2 log(64 / d) is added to the log SNR of images of d x d pixels, here d = 128.
_SHIFT = 2 * math.log(64 / 128)

SIMPLE_DIFFUSION = dk.register("preset", "simple_diffusion")(
    dk.Preset(
        # Appendix A: log SNR from 15 to -15 before the shift, which moves both ends with the curve.
        schedule=(
            "cosine",
            {"logsnr_max": 15.0 + _SHIFT, "logsnr_min": -15.0 + _SHIFT, "shift": _SHIFT},
        ),
        parameterization="v",
        # Section 2 and appendix A: the plain error of eps, of which v is only the form. P2 with gamma 0.
        weighting=("p2", {"gamma": 0.0}),
        sampler=("ancestral", {"spread": 0.2}),  # appendix A: noise_param 0.2
        grid="uniform_t",
        # Appendix B, U-Net for ImageNet 128x128, as unchecked as `train` below: 128 channels, attention
        # at 16x16 and 8x8. Its blocks are [3, 4, 4, 12, 4] by resolution, and dropout is from 16x16 down
        # only; `unet` has one number for all.
        network=_unet(width=128, multipliers=(1, 2, 4, 8, 8), depth=4, attention=(3, 4), dropout=0.1),
        train={
            # Meant to be those of appendix B, U-Net for ImageNet 128x128. Unchecked: neither the text of
            # the appendix nor code of the authors was at hand.
            "steps": 1_500_000,
            "batch_size": 512,
            "learning_rate": 5e-5,
            "warmup": 10_000,
            **_ADAM,
            "b2": 0.99,  # the least sure of them: it may be 0.999
            "clip": 1.0,
            "ema": 0.9999,
            "checkpoint_every": 10_000,  # ours
        },
        **_COMMON,
    )
)
"""Simple diffusion (Hoogeboom, Heek and Salimans 2023, arXiv 2301.11093) for images of 128x128.

The shift s = 2 log(64 / d) moves the whole log SNR, ends included, so another resolution d changes three
options: `schedule.shift` to s, `schedule.logsnr_max` to 15 + s and `schedule.logsnr_min` to -15 + s. For
d = 128 they are -1.3863, 13.6137 and -16.3863.

Not included: the U-ViT of the paper's larger model, class labels, and the multiscale loss and wavelet
patches for 256x256 and beyond. Network and optimiser could not be checked against the paper.
"""
