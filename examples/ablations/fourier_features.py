"""Fourier features of the input: without, and with which frequencies.

    python examples/ablations/fourier_features.py --multirun     # about three minutes on two cores

It varies the exponents n of the features sin(2^n 2 pi z) and cos(2^n 2 pi z), inputs of the network with z.
The paper's text has n = 7 and 8, its published code 6 and 7, like diffkit's default.

The paper (sections 3.4 and 6.2, appendix C): the features improve the likelihood, most with a learned
signal-to-noise ratio. Under the schedule of Ho et al. (2020), whose log SNR ends at about 8, the test loss
stays above 4 bits/dim; a learned log SNR ends at 13.3.

Repeat that with schedule=learned_monotone,linear_beta (the schedule of Ho et al., of `diffkit-ddpm`).

The digits have 17 grey levels; the frequencies are scaled to give n the same meaning.
"""

from common import Ablation, main

ABLATION = Ablation(
    name="fourier_features",
    question="Do Fourier features of the input help, and which?",
    axes={"network.fourier": "[6,7],[],[6],[7],[5,6,7]"},
)

if __name__ == "__main__":
    main(ABLATION)
