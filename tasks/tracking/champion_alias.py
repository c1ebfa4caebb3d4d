"""MLflow's alias `champion`, which mirrors the champion log."""

from __future__ import annotations

from tasks.store.champion_log import CHAMPION, ChampionLog
from tasks.tracking.registry import aliases, set_alias


def mirror_alias(log: ChampionLog) -> bool:
    """Moves MLflow's alias `champion` to what the log says; returns whether it had to move."""
    current = log.current()
    if current is None or aliases(current.model).get(CHAMPION) == current.version:
        return False
    set_alias(current.model, CHAMPION, current.version)
    return True
