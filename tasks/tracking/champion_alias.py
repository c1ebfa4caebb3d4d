"""MLflow's alias `champion`, which mirrors the champion log."""

from __future__ import annotations

from tasks.store.champion_log import CHAMPION, ChampionLog
from tasks.tracking.registry import set_alias, versions


def mirror_alias(log: ChampionLog) -> bool:
    """Moves MLflow's alias `champion` to what the log says; returns whether it had to move.

    A version that was deleted in MLflow has no alias; `recloop status` names it.
    """
    current = log.current()
    if current is None:
        return False
    here = next((found for found in versions(current.model) if found["version"] == current.version), None)
    if here is None or CHAMPION in here["aliases"]:
        return False
    set_alias(current.model, CHAMPION, current.version)
    return True
