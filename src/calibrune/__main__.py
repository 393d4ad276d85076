"""`python -m calibrune` is the `calibrune` command."""

from calibrune.cli import main

main()
