"""MLflow's alias `champion`, which mirrors the champion log."""

from __future__ import annotations

from collections.abc import Callable

from tasks.store.champion_log import CHAMPION, ChampionLog
from tasks.tracking.registry import Version, set_alias, versions


def mirror_alias(log: ChampionLog, read: Callable[[str], list[Version]] | None = None) -> bool:
    """Moves MLflow's alias `champion` to the log's version; returns True if it had to move. `read` lists the versions.

    A version that was deleted in MLflow has no alias; `recloop status` names it.
    """
    current = log.current()
    if current is None:
        return False
    here = next((found for found in (read or versions)(current.model) if found["version"] == current.version), None)
    if here is None or CHAMPION in here["aliases"]:
        return False
    set_alias(current.model, CHAMPION, current.version)
    return True
