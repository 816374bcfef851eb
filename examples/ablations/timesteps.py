"""The number of steps T, in training and in evaluation: the table of appendix F.

    python examples/ablations/timesteps.py --multirun     # about four minutes on two cores

Each model is trained with one T (`null`: in continuous time) and evaluated with every T: the second table
has a row for each training and a column for each evaluation. The first has the bound at T of the training.

The paper (section 4.1, appendix F): with a good denoiser more steps give a lower loss, and a model trained
in continuous time can be evaluated with any T, at a cost for small T. Here the schedule is a straight line
between learned endpoints, as in the published configuration for CIFAR-10, so all T share one.
"""

from common import Ablation, main

ABLATION = Ablation(
    name="timesteps",
    question="How does the bound depend on the number of steps, in training and in evaluation?",
    axes={
        "train.loss_steps": "null,10,100,250,500,1000",
        "schedule": "learned_linear",
        "evaluate_steps": "[10,100,250,500,1000,null]",
    },
    tiny={"passes": "8"},
)

if __name__ == "__main__":
    main(ABLATION)
