"""`make demo`: runs days of a scenario in a real Airflow with MLflow on this machine, and shows their results.

`make down` ends the servers. A second call reuses running servers and finished days.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import requests
from rich.console import Console

from feature_jobs.errors import BadInputError, RecloopError
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.schema.days import ONE_DAY, check_day, day_range
from infra.airflow_api import AirflowApi
from infra.backfill import Backfill, failure_of
from infra.day_task import Task
from infra.servers import ROOT, USER, Local, serve_scenario, start_servers
from infra.summary import Times, demo_facts, journal_size, print_days
from tasks.steps import WRITERS
from tasks.store.champion_log import ChampionLog
from tasks.store.scenario_store import open_store

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit code."""
    given = _parser().parse_args(arguments)
    console = Console(highlight=False)
    try:
        return run(given.scenario, given.days, given.data or None, Path(given.home).resolve(), console)
    except RecloopError as error:
        console.print(f"demo: {error}", style="red", markup=False)
        return error.exit_code
    except KeyboardInterrupt:
        console.print("\nstopped watching; the days go on: `make demo` watches again, `make down` ends them")
        return INTERRUPTED


def run(name: str, num_days: int, data: str | None, home: Path, console: Console) -> int:
    """The demo of the scenario's first `num_days` days. Raises RecloopError where it cannot begin."""
    begun = time.time()
    scenario = load_scenario(scenario_file(name), data=data)
    days = first_days(scenario, num_days)
    # In the background, while the servers start.
    fetching = None if data else _fetch(scenario)
    try:
        local = start_servers(home, console.print)
        if fetching is not None and fetching.wait():
            raise BadInputError(f"{scenario.name}: the data could not be fetched; its message is above")
    finally:
        if fetching is not None and fetching.poll() is None:
            fetching.terminate()
    _print_addresses(local, scenario, console)
    store = open_store(local.store, scenario.name)
    already = journal_size(store)
    api = AirflowApi(local.airflow_url, USER, local.password)
    backfill = Backfill(api, scenario, days, Path(data).resolve() if data else None)
    backfill.await_dag()
    api.ensure_pool("gpu", 1, "one training at a time")
    started = time.time()
    backfill.create(lambda ds: store.find(WRITERS["checkpoint"], ds) is not None, console.print)
    api.unpause(backfill.dag_id)
    tasks = backfill.watch(console, local.require_running)
    fresh = [task for task in tasks if (task.start or 0.0) >= started]
    times = Times.of(store, already, fresh, startup_s=started - begun, wall_s=time.time() - begun)
    facts = demo_facts(scenario, store, days)
    document = {
        **facts,
        "airflow_url": local.airflow_url,
        "mlflow_url": local.mlflow_url,
        "tracking_uri": local.tracking_uri,
        "store": str(local.store),
        "useful_compute_share": times.useful_share,
    }
    Path("demo.json").write_text(json.dumps(document, indent=1) + "\n")
    print_days(scenario, facts, console)
    console.print(times.text(), soft_wrap=True)
    _print_addresses(local, scenario, console)
    _serve(local, scenario, console)
    return _print_failures([task for task in tasks if task.state == "failed"], backfill.dag_id, local, console)


def scenario_file(name: str) -> Path:
    """scenarios/NAME.yaml: Airflow's DAGs come from that folder alone."""
    return ROOT / "scenarios" / f"{Path(name).stem}.yaml"


def first_days(scenario: Scenario, num_days: int) -> list[str]:
    """The scenario's first days. Raises BadInputError where it has fewer."""
    first, known = scenario.data.days.first, scenario.data.days
    last = known.last or first + ONE_DAY * (num_days + len(known.skip))
    days = day_range(scenario, str(first), str(last))
    if not 0 < num_days <= len(days):
        raise BadInputError(f"DAYS={num_days}: {scenario.file.name} has {len(days)} days, {days[0]} to {days[-1]}")
    for ds in days[:num_days]:
        check_day(scenario, ds)
    if datetime.date.fromisoformat(days[num_days - 1]) >= datetime.datetime.now(datetime.UTC).date():
        raise BadInputError(f"DAYS={num_days}: {days[num_days - 1]} is not over yet; choose fewer days")
    return days[:num_days]


def _fetch(scenario: Scenario) -> subprocess.Popen[bytes] | None:
    """Begins to fetch the data, if the scenario names a source; files that are there already are kept."""
    if scenario.data.fetch is None:
        return None
    command = [sys.executable, "-P", "-m", "tasks", "fetch", "--scenario", str(scenario.file)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


def _print_addresses(local: Local, scenario: Scenario, console: Console) -> None:
    console.print(f"Airflow {local.airflow_url}  user {USER}  password {local.password}", markup=False, soft_wrap=True)
    runs = local.runs_url(scenario.name)
    if runs is not None:  # before the first step there are none
        console.print(f"MLflow  {runs}", markup=False, soft_wrap=True)


def _serve(local: Local, scenario: Scenario, console: Console) -> None:
    """Starts the server of the champion, and prints a request to it that a person can copy."""
    if scenario.online is None or ChampionLog(open_store(local.store, scenario.name)).current() is None:
        return
    url = serve_scenario(local, scenario)
    example = requests.get(f"{url}/status", timeout=10).json()["example"]
    user, items = ([example["user"]], example["items"])
    body = json.dumps({"inputs": [_tensor("user", user), _tensor("items", items)]})
    console.print(f"Server  {url}  ranks items for a user; see its page, or ask:", markup=False, soft_wrap=True)
    console.print(
        f"  curl -s {url}/v2/models/{scenario.name}/infer -d {shlex.quote(body)}", markup=False, soft_wrap=True
    )


def _tensor(name: str, values: list[int | str]) -> Mapping[str, object]:
    datatype = "BYTES" if any(isinstance(value, str) for value in values) else "INT64"
    return {"name": name, "shape": [len(values)], "datatype": datatype, "data": values}


def _print_failures(failed: list[Task], dag_id: str, local: Local, console: Console) -> int:
    """Prints the steps that failed, the reasons, and the paths of their logs; returns the exit code."""
    for task in failed:
        reason, log = failure_of(task, dag_id, local.home / "airflow" / "logs")
        console.print(f"{task.ds}: {reason}\n  log: {log}", style="red", markup=False, soft_wrap=True)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--scenario", default="movielens", help="a scenario of scenarios/")
    parser.add_argument("--days", type=int, default=5, help="number of its days")
    parser.add_argument("--data", help="folder of its logs, instead of fetching them")
    parser.add_argument("--home", default=".recloop", help="where the store and the servers' files go")
    return parser


if __name__ == "__main__":
    # `make demo | head` must not end with a traceback.
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
