"""What the network predicts, and how the loss is weighted.

    python examples/ablations/parameterization_weighting.py --multirun  # about four minutes on two cores

The weighting `elbo` is the bound. `simple` is the plain squared error of the target, at uniform times:
another weighting for each parameterization. `sigmoid` favours noisier data, in the same way for each
(Kingma and Gao 2023, arXiv 2303.00848).

The paper (sections 5.2 and 6.1) predicts the noise and minimises the bound. Weightings that favour noisier
data are for sample quality: that of Ho et al. (2020) improves its FID on CIFAR-10 from 7.41 to 4.0. It
has no table of this pair; `v` is of Salimans and Ho (2022, arXiv 2202.00512).

The bound judges all. The schedule is fixed because other weightings do not constrain learned endpoints,
and linear in log SNR, so `simple` for `epsilon` is the bound up to a constant factor.
"""

from common import Ablation, main

ABLATION = Ablation(
    name="parameterization_weighting",
    question="What should the network predict, and what does a weighted loss cost in likelihood?",
    axes={
        "parameterization": "epsilon,v,x",
        "weighting": "elbo,simple,sigmoid",
        "schedule": "linear_logsnr",
    },
    paper={"train.seed": "0"},
)

if __name__ == "__main__":
    main(ABLATION)
