"""Days that rows of users were left out of, by a generation that forgets."""

from __future__ import annotations

from tasks.store.scenario_store import ScenarioStore


def leaves_out(store: ScenarioStore, ds: str, generation: int | None = None) -> bool:
    """Says if rows were left out of a day, as seen from a generation (default: the newest): it is never read from its
    source again."""
    holder = store.holder(ds, generation)
    return holder.forgets and ds <= (holder.to_ds or ds)


def is_forgotten(store: ScenarioStore, ds: str, generation: int) -> bool:
    """Says if a newer generation left rows out of this generation's day: nothing may go back to that day."""
    return any(g.forgets and g.number > generation and ds >= (g.from_ds or ds) for g in store.generations())
