"""The `recloop` command: whole days, every step, and what a person asks of a running loop."""

from tasks.commands.common import main  # first: its clock also sees the imports below  # isort: skip
from tasks.commands import days, steps, versions

__all__ = ["days", "main", "steps", "versions"]
