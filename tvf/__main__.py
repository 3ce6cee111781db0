"""`python -m tvf` is the command `tvf`."""

from tvf.cli import main

main()
