"""Equivalences between diffusion models, as code.

In terms of log SNR the published models are one model. `transport` carries a trained model from one
description to another, `implied_weighting` finds the weighting of a published loss and whether it is a
bound, `canonical_time_sampling` the times that make it a plain average, and `compare` puts two
compositions side by side.
"""

from diffkit.equivalence.canonical import CanonicalTimes as CanonicalTimes
from diffkit.equivalence.canonical import canonical_time_sampling as canonical_time_sampling
from diffkit.equivalence.comparison import Comparison as Comparison
from diffkit.equivalence.comparison import Composition as Composition
from diffkit.equivalence.comparison import Row as Row
from diffkit.equivalence.comparison import common_range as common_range
from diffkit.equivalence.comparison import compare as compare
from diffkit.equivalence.comparison import composition as composition
from diffkit.equivalence.figure import save_comparison as save_comparison
from diffkit.transport import Transported as Transported
from diffkit.transport import TransportWarning as TransportWarning
from diffkit.transport import range_losses as range_losses
from diffkit.transport import transport as transport
from diffkit.weightings import Verdict as Verdict
from diffkit.weightings import classify as classify
from diffkit.weightings import implied_weighting as implied_weighting
