"""`python -m tapewatch` is `tapewatch`."""

from tapewatch.cli import main

main()
