"""`python -m planner` is `qplan`."""

from planner.cli import main

main()
