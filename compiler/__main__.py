"""`python -m nnc`."""

from nnc.cli import main

main()
