"""Samplers: from noise to data, under every process."""

from diffkit.samplers.ancestral import Ancestral as Ancestral
from diffkit.samplers.base import AbstractSampler as AbstractSampler
from diffkit.samplers.ddim import DDIM as DDIM
from diffkit.samplers.forms import FORMS as FORMS
from diffkit.samplers.forms import LONGEST as LONGEST
from diffkit.samplers.forms import Form as Form
from diffkit.samplers.forms import between as between
from diffkit.samplers.forms import is_long as is_long
from diffkit.samplers.loop import Trajectory as Trajectory
from diffkit.samplers.loop import sample as sample
from diffkit.samplers.loop import sample_trajectory as sample_trajectory
from diffkit.samplers.runge_kutta import RungeKutta2 as RungeKutta2
