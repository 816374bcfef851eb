"""A plugin of diffkit. Importing it registers its parts."""

from diffkit.typing import check_types

# Before the modules whose annotations it checks at run time.
check_types("diffkit_custom")

from diffkit_custom.optimisers import Adamax as Adamax
from diffkit_custom.presets import CUSTOM as CUSTOM
from diffkit_custom.samplers import Ralston as Ralston
from diffkit_custom.schedules import Bent as Bent
from diffkit_custom.weightings import Window as Window
from diffkit_custom.weightings import window as window
