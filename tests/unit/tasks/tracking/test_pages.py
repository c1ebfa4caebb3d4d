"""Addresses of MLflow's pages name experiments and runs as MLflow does."""

from __future__ import annotations

from tasks.tracking.connection import client
from tasks.tracking.pages import chain_run_id, experiment_id


def test_an_experiment_and_the_run_of_its_chain_are_found(mlflow_uri: str) -> None:
    assert experiment_id(mlflow_uri, "shop") is None
    shop = client().create_experiment("shop")
    client().create_run(shop, tags={"recloop.kind": "day"})
    assert experiment_id(mlflow_uri, "shop") == shop
    assert chain_run_id(mlflow_uri, shop) is None
    chain = client().create_run(shop, tags={"recloop.kind": "chain"})
    assert chain_run_id(mlflow_uri, shop) == chain.info.run_id
