"""Ids by which the addresses of MLflow's pages name an experiment and a run."""

from __future__ import annotations

from tasks.tracking.connection import call, client


def experiment_id(server: str, experiment: str) -> str | None:
    """The id of an experiment at this server, None where it has none of the name."""
    found = call(lambda: client(server).get_experiment_by_name(experiment))
    return None if found is None else str(found.experiment_id)


def chain_run_id(server: str, experiment: str) -> str | None:
    """The id of the run of the whole chain in an experiment, by the experiment's id; None where it has none."""
    wanted = "tags.`recloop.kind` = 'chain'"
    found = call(lambda: client(server).search_runs([experiment], filter_string=wanted, max_results=1))
    return str(found[0].info.run_id) if found else None
