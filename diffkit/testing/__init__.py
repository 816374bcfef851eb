"""The laws that make parts interchangeable, as a kit for authors of parts.

A *law* is a sentence about every part of a kind, and a function that tests a part for it. There are three
ways to run laws: `diffkit check PLUGIN` tests all parts of a plugin; a test class such as
`class TestSteep(ScheduleLaws): part = Steep()` tests one part under pytest; `laws(kind)` and
`check_part(kind, part)` work from Python. A broken law raises a `LawError`, which names the part, the law,
the input and the numbers.
"""

from diffkit.testing import data as data
from diffkit.testing import decoders as decoders
from diffkit.testing import grids as grids
from diffkit.testing import networks as networks
from diffkit.testing import optimisers as optimisers
from diffkit.testing import parameterizations as parameterizations
from diffkit.testing import presets as presets
from diffkit.testing import processes as processes
from diffkit.testing import samplers as samplers
from diffkit.testing import schedules as schedules
from diffkit.testing import time_samplers as time_samplers
from diffkit.testing import weightings as weightings
from diffkit.testing.base import Law as Law
from diffkit.testing.base import LawError as LawError
from diffkit.testing.base import NotApplicable as NotApplicable
from diffkit.testing.base import Result as Result
from diffkit.testing.base import check_part as check_part
from diffkit.testing.base import laws as laws

# After the modules above, which define the laws of these classes.
from diffkit.testing.classes import DataLaws as DataLaws
from diffkit.testing.classes import DecoderLaws as DecoderLaws
from diffkit.testing.classes import GridLaws as GridLaws
from diffkit.testing.classes import NetworkLaws as NetworkLaws
from diffkit.testing.classes import OptimiserLaws as OptimiserLaws
from diffkit.testing.classes import ParameterizationLaws as ParameterizationLaws
from diffkit.testing.classes import PresetLaws as PresetLaws
from diffkit.testing.classes import ProcessLaws as ProcessLaws
from diffkit.testing.classes import SamplerLaws as SamplerLaws
from diffkit.testing.classes import ScheduleLaws as ScheduleLaws
from diffkit.testing.classes import TimeSamplerLaws as TimeSamplerLaws
from diffkit.testing.classes import WeightingLaws as WeightingLaws
