"""DDPM (arXiv 2006.11239), improved DDPM (2102.09672) and simple diffusion (2301.11093) in diffkit."""

from diffkit.typing import check_types

check_types("diffkit_ddpm")

from diffkit_ddpm.grids import Respaced as Respaced
from diffkit_ddpm.parameterizations import EpsilonRange as EpsilonRange
from diffkit_ddpm.presets import DDPM as DDPM
from diffkit_ddpm.presets import IDDPM as IDDPM
from diffkit_ddpm.presets import SIMPLE_DIFFUSION as SIMPLE_DIFFUSION
from diffkit_ddpm.schedules import DiscreteBetas as DiscreteBetas
from diffkit_ddpm.schedules import iddpm_cosine as iddpm_cosine
from diffkit_ddpm.schedules import linear_beta as linear_beta
