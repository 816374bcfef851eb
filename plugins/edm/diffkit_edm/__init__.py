"""EDM, the design space of diffusion models (arXiv 2206.00364), as parts of diffkit."""

from diffkit.typing import check_types

check_types("diffkit_edm")

from diffkit_edm.grids import RhoGrid as RhoGrid
from diffkit_edm.parameterizations import F as F
from diffkit_edm.parameterizations import Preconditioning as Preconditioning
from diffkit_edm.parameterizations import preconditioning as preconditioning
from diffkit_edm.presets import EDM as EDM
from diffkit_edm.samplers import Churn as Churn
from diffkit_edm.samplers import edm_heun as edm_heun
from diffkit_edm.schedules import LogNormal as LogNormal
from diffkit_edm.weightings import edm as edm
