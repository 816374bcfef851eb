"""Score-based generative modeling through SDEs (arXiv 2011.13456) as parts of diffkit."""

from diffkit.typing import check_types

check_types("diffkit_score_sde")

from diffkit_score_sde.presets import SUBVP_SDE as SUBVP_SDE
from diffkit_score_sde.presets import VE_SDE as VE_SDE
from diffkit_score_sde.presets import VP_SDE as VP_SDE
from diffkit_score_sde.processes import SubVP as SubVP
from diffkit_score_sde.samplers import EulerMaruyama as EulerMaruyama
from diffkit_score_sde.samplers import PredictorCorrector as PredictorCorrector
from diffkit_score_sde.schedules import AbstractBeta as AbstractBeta
from diffkit_score_sde.schedules import SubVPBeta as SubVPBeta
from diffkit_score_sde.schedules import VPBeta as VPBeta
