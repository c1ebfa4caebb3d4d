"""`python -m tasks STEP ...` is `recloop STEP ...`."""

from tasks.cli import main

main()
