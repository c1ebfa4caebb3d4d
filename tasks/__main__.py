"""`python -m tasks STEP ...` is `recloop STEP ...`."""

from tasks.commands.cli import main

main()
