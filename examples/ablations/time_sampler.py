"""The times of a batch: low-discrepancy, independent, adaptive.

    python examples/ablations/time_sampler.py --multirun     # about two minutes on two cores

The paper (appendix I.1) spreads the times of a batch evenly over [0, 1], with one random shift, because the
variance of the estimate is then much smaller. `adaptive` is later work: importance sampling by a running
estimate of the loss (Kingma and Gao 2023, arXiv 2303.00848).

A time sampler changes the variance of the estimate but not the objective. The columns on variance, of one
draw and of a batch, show what it saves; a difference in bits/dim comes from less noisy gradients. The
schedule is fixed because one that minimises the variance evens the loss over time by itself.
"""

from common import Ablation, main

ABLATION = Ablation(
    name="time_sampler",
    question="How much variance do evenly spread times save, and does it show in the bound?",
    axes={
        "time_sampler": "low_discrepancy,uniform,adaptive",
        "schedule": "linear_logsnr",
        "variance": "true",
    },
)

if __name__ == "__main__":
    main(ABLATION)
