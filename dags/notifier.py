"""Reports a failed step to the log and to a webhook."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, TypedDict

from airflow.sdk import BaseNotifier

if TYPE_CHECKING:
    from airflow.sdk import Context

SETTING = "RECLOOP_ALERT_URL"
TIMEOUT_S = 5.0  # a webhook that hangs must not keep a worker


class FailureNotifier(BaseNotifier):
    """Logs one JSON line and posts the same to the webhook that RECLOOP_ALERT_URL names, if one is set.

    A webhook that does not answer is logged and changes nothing else.
    """

    def notify(self, context: Context) -> None:
        """Called by Airflow when a task has failed for good."""
        alert = alert_of(context)
        self.log.error("step failed %s", json.dumps(alert, sort_keys=True))
        url = os.environ.get(SETTING, "")
        if not url:
            return
        import requests  # not above: Airflow reads this file each time it parses a DAG

        try:
            requests.post(url, json=alert, timeout=TIMEOUT_S).raise_for_status()
        except requests.RequestException as error:
            self.log.error("%s: the alert was not delivered: %s", SETTING, error)


class Alert(TypedDict):
    """Message for the log and the webhook."""

    event: str
    dag_id: str
    run_id: str
    task_id: str
    try_number: int
    logical_date: str
    error: str
    log_url: str | None


def alert_of(context: Context) -> Alert:
    """The alert about a failed task."""
    instance = context["ti"]
    return {
        "event": "step_failed",
        "dag_id": instance.dag_id,
        "run_id": instance.run_id,
        "task_id": instance.task_id,
        "try_number": instance.try_number,
        "logical_date": str(context.get("logical_date")),
        "error": str(context.get("exception") or "the worker was lost"),  # a worker that was killed raised nothing
        "log_url": getattr(instance, "log_url", None),
    }
