"""The `recloop` command: whole days, every step, and questions about a running loop."""

# Each module adds its commands to `main` when it is imported.
from tasks.commands import days, expectations, online, serve, steps, storage, tries, versions
from tasks.commands.common import main

__all__ = ["days", "expectations", "main", "online", "serve", "steps", "storage", "tries", "versions"]
