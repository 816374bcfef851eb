"""Samplers: from noise to data, under every process."""

from diffkit.samplers.ancestral import Ancestral as Ancestral
from diffkit.samplers.base import AbstractSampler as AbstractSampler
from diffkit.samplers.ddim import DDIM as DDIM
from diffkit.samplers.loop import Trajectory as Trajectory
from diffkit.samplers.loop import sample as sample
from diffkit.samplers.loop import sample_trajectory as sample_trajectory
