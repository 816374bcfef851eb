"""The schedule: fixed, with learned endpoints, and learned to minimise the variance.

    python examples/ablations/schedule.py --multirun     # about three minutes on two cores

The paper (sections 5.1, 5.3 and 6.2, appendix I.2): in continuous time the bound depends only on log SNR at
the endpoints, and learns them. The interior changes the variance of the estimate and learns to minimise it;
the paper compares it with a log SNR linear in time and with the schedules of Ho et al. (2020) and Nichol
and Dhariwal (2021, cosine), and finds that the learned one has the least variance.

`learned_linear` has learned endpoints only, `learned_monotone` also minimises the variance. The columns on
variance are of the diffusion loss of one draw and of a batch, measured after training.
"""

import dataclasses

from common import VDM, Ablation, main

import diffkit as dk

# So that `learned_monotone` minimises the variance, and the other schedules are what they are.
dk.register("preset", "vdm_cifar10_monotone")(
    dataclasses.replace(dk.get("preset", "vdm_cifar10"), schedule=VDM.schedule)
)

ABLATION = Ablation(
    name="schedule",
    question="What does a learned schedule change: the bound, or the variance of its estimate?",
    axes={
        "schedule": "linear_logsnr,learned_linear,learned_monotone,cosine",
        "variance": "true",
    },
    paper={"preset": "vdm_cifar10_monotone"},
)

if __name__ == "__main__":
    main(ABLATION)
