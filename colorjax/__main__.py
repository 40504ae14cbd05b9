"""`python -m colorjax` is the `colorjax` command."""

from colorjax.cli import main

main()
