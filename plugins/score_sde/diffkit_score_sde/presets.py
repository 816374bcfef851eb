"""The models of Song et al. 2021 (arXiv 2011.13456) for CIFAR-10.

Parts and settings are those of the paper and of github.com/yang-song/score_sde_pytorch,
`configs/default_cifar10_configs.py` and those named below. docs/plugins/score_sde.md lists what differs.
"""

import dataclasses
import math

import diffkit as dk

# Appendix C and `model.sigma_min`, `model.sigma_max`, for data in [0, 1]. Ours are in [-1, 1], twice
# as wide: the same signal-to-noise ratios need twice the noise.
_SIGMA_MIN, _SIGMA_MAX = 2 * 0.01, 2 * 50.0

# Table 5 and `sampling.snr`, at `model.num_scales` steps: see `PredictorCorrector`.
_SNR, _STEPS = 0.16, 1000
_STEP = 2 * math.log(_SIGMA_MAX / _SIGMA_MIN) / _STEPS
_CORRECTOR = round(-math.log1p(-2 * _SNR**2) / _STEP, 2)

# `nf`, `num_res_blocks`, `ch_mult`, `attn_resolutions` (16 pixels of 32: resolution 1) and `dropout`, which
# DDPM++ and NCSN++ share (appendix H.2).
_NETWORK = (
    "unet",
    {"width": 128, "depth": 4, "multipliers": (1, 2, 2, 2), "attention": (1,), "dropout": 0.1},
)


VP_SDE = dk.register("preset", "vp_sde")(
    dk.Preset(
        schedule=("vp_beta", {"beta_min": 0.1, "beta_max": 20.0}),  # appendix C
        process="variance_preserving",
        # Equation 7 with the paper's weight sigma^2 before the error of the score, a plain mean over
        # uniform times: `simple` for sigma times the score, or the plain error of eps.
        parameterization=("score", {"scaled": True}),
        weighting="simple",
        loss=dk.Loss(parameterization="epsilon"),
        time_sampler="uniform",
        sampler="euler_maruyama",
        grid="uniform_t",
        decoder="discretized",
        network=_NETWORK,
        train={
            # `training.n_iters` of the default, which none of the three configurations replaces. Appendix
            # H.1 has 1.3M; appendix H.2 shortens the training of NCSN++ cont. to 0.95M.
            "steps": 1_300_001,
            "batch_size": 128,  # `training.batch_size`, appendix H.1
            "learning_rate": 2e-4,  # `optim`, from here to `clip`
            "warmup": 5000,  # from a rate of 0: `optimization_manager` in losses.py
            "decay": "constant",
            "weight_decay": 0.0,
            "b1": 0.9,
            "b2": 0.999,  # not in `optim`: `get_optimizer` in losses.py
            "clip": 1.0,
            "ema": 0.9999,  # `model.ema_rate`, appendix H.1. models/ema.py has a ramp too.
            "checkpoint_every": 10_000,  # `training.snapshot_freq_for_preemption`
        },
    )
)
"""DDPM++ cont. under the VP SDE (`configs/vp/cifar10_ddpmpp_continuous.py`)."""

SUBVP_SDE = dk.register("preset", "subvp_sde")(
    dataclasses.replace(
        VP_SDE,
        schedule=("sub_vp_beta", {"beta_min": 0.1, "beta_max": 20.0}),  # appendix C
        process="sub_vp",
    )
)
"""DDPM++ cont. under the sub-VP SDE: the configuration of `vp_sde` with `training.sde` = "subvpsde"."""

VE_SDE = dk.register("preset", "ve_sde")(
    dataclasses.replace(
        VP_SDE,
        schedule=(
            "linear_logsnr",
            {"logsnr_max": -2 * math.log(_SIGMA_MIN), "logsnr_min": -2 * math.log(_SIGMA_MAX)},
        ),
        process="variance_exploding",
        sampler=("predictor_corrector", {"corrector": _CORRECTOR, "corrector_steps": 1}),
        train={**VP_SDE.train, "ema": 0.999},
    )
)
"""NCSN++ cont. under the VE SDE (`configs/ve/cifar10_ncsnpp_continuous.py`)."""
