"""Logged models that no version came from, because the process that logged them was killed: found and deleted.

A model carries the mark of its process from its creation until it is registered. One whose process still runs is left
alone; a process of another machine is taken for dead after the longest time that a step may take.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from tasks.tracking.connection import call, client
from tasks.tracking.registry import versions

MARK = "recloop.logging"
OWNER = "recloop.logging_process"
LONGEST_S = 3600


def mark_of_this_process() -> dict[str, str]:
    """The tags of a model that is not registered yet."""
    return {MARK: "true", OWNER: f"{socket.gethostname()}/{os.getpid()}/{_started(os.getpid())}"}


def clear_mark(model_id: str) -> None:
    """Says that the model is registered."""
    call(partial(client().delete_logged_model_tag, model_id, MARK))


def delete_unregistered(model: str, experiment_id: str) -> None:
    """Deletes the logged models that killed processes left."""
    marked = list(_marked(experiment_id))
    if not marked:
        return
    registered = {version["model_id"] for version in versions(model)}
    for logged in marked:
        if logged.model_id in registered:  # killed between the version and the mark
            clear_mark(logged.model_id)
        elif _is_abandoned(logged):
            call(partial(client().delete_logged_model, logged.model_id))


def _marked(experiment_id: str) -> Iterator[Any]:
    token: str | None = None
    while True:
        search = partial(client().search_logged_models, [experiment_id], f"tags.`{MARK}` = 'true'")
        page = call(partial(search, page_token=token))
        yield from page
        token = page.token
        if not token:
            return


def _is_abandoned(logged: Any) -> bool:
    host, _, process = str(logged.tags.get(OWNER, "")).partition("/")
    pid, _, started = process.partition("/")
    if host == socket.gethostname() and pid.isdigit():
        return _started(int(pid)) != started
    created_s: float = logged.creation_timestamp / 1000
    return time.time() - created_s > LONGEST_S


def _started(pid: int) -> str | None:
    """Returns the start time of a process of this machine, because numbers are reused; None where it has ended."""
    import psutil

    try:
        return str(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None
