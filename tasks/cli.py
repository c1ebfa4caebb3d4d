"""The `recloop` command: whole days, every step, and what a person asks of a running loop."""

from tasks.commands import main  # first: its clock also sees the imports below  # isort: skip
from tasks import commands_days, commands_steps, commands_versions

__all__ = ["commands_days", "commands_steps", "commands_versions", "main"]
