"""Flow matching (arXiv 2210.02747) and rectified flow (2209.03003, 2403.03206) as parts of diffkit."""

from diffkit.typing import check_types

check_types("diffkit_flow")

from diffkit_flow.parameterizations import Velocity as Velocity
from diffkit_flow.presets import FLOW_MATCHING as FLOW_MATCHING
from diffkit_flow.presets import RECTIFIED_FLOW as RECTIFIED_FLOW
from diffkit_flow.processes import Straight as Straight
from diffkit_flow.samplers import euler as euler
from diffkit_flow.samplers import midpoint as midpoint
from diffkit_flow.schedules import StraightLine as StraightLine
from diffkit_flow.time_samplers import LogitNormal as LogitNormal
