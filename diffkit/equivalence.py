"""Equivalences between diffusion models, as code.

Seen through log SNR the published models are one model: here are the maps between their descriptions.
"""

from diffkit.weightings import implied_weighting as implied_weighting
