"""`python -m diffkit.cli`: the console script without installing it."""

from diffkit.console import script

script()
