"""`python -m diffkit.cli`: the console script without installing it."""

from diffkit.cli import main

main()
