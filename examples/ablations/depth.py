"""The depth of the network: residual blocks on the way down.

    python examples/ablations/depth.py --multirun     # about three minutes on two cores

The paper (section 3.4, appendix B) never changes the resolution within its U-Net and makes it deep instead:
32 blocks on the way down for CIFAR-10. It has no table of depths.
"""

from common import Ablation, main

ABLATION = Ablation(
    name="depth",
    question="What does a deeper network gain?",
    axes={"network.depth": "2,1,4,8"},
    paper={"network.depth": "32,8,16,64"},
)

if __name__ == "__main__":
    main(ABLATION)
