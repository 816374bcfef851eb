"""Solvers of high order for the probability-flow ODE and the reverse SDE, as parts of diffkit."""

from diffkit.typing import check_types

check_types("diffkit_solvers")

from diffkit_solvers.adaptive import Adaptive as Adaptive
from diffkit_solvers.multistep import Multistep as Multistep
from diffkit_solvers.named import ab_v as ab_v
from diffkit_solvers.named import deis as deis
from diffkit_solvers.named import dpmpp_2m as dpmpp_2m
from diffkit_solvers.named import dpmpp_2m_sde as dpmpp_2m_sde
from diffkit_solvers.named import dpmpp_3m as dpmpp_3m
from diffkit_solvers.named import heun as heun
from diffkit_solvers.named import unipc as unipc
