"""Fourier features of the input: without, and with which frequencies.

    python examples/ablations/fourier_features.py --multirun     # about three minutes on two cores

Varied are the exponents n of the features sin(2^n 2 pi z) and cos(2^n 2 pi z) that the network reads
beside z. The paper's text has n = 7 and 8, its published code 6 and 7, as diffkit's default.

The paper (sections 3.4 and 6.2, appendix C): the features improve the likelihood, and to get the most out
of them the signal-to-noise ratio must be learned. Under the schedule of Ho et al. (2020), whose log SNR
ends at about 8, the test loss stays above 4 bits/dim; a learned log SNR ends at 13.3.

That one too, by schedule=learned_monotone,linear_beta (the schedule of Ho et al., of `diffkit-ddpm`).

The digits have 17 grey levels, and the frequencies are scaled so that n means the same.
"""

from common import Ablation, main

ABLATION = Ablation(
    name="fourier_features",
    question="Do Fourier features of the input help, and which?",
    axes={"network.fourier": "[6,7],[],[6],[7],[5,6,7]"},
)

if __name__ == "__main__":
    main(ABLATION)
