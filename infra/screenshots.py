"""`make screenshots`: pictures of the running demo's Airflow and MLflow, for the README.

Needs Debian's Chromium (`apt-get install chromium`) and a demo that has run. The browser is driven over its DevTools
protocol, so that nothing else has to be installed; its profile is a temporary folder.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import requests
from websockets.sync.client import ClientConnection, connect

from feature_jobs.errors import BadInputError, RecloopError, RetryLaterError
from feature_jobs.schema import Scenario, load_scenario
from infra.airflow_api import AirflowApi
from infra.demo import scenario_file
from infra.servers import HOST, ROOT, USER, Local
from tasks.tracking.pages import chain_run_id

REMEMBERED = {  # settings of the two UIs in the browser's storage: show the graph, hide MLflow's assistant
    "default_dag_view": '"graph"',
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
}
IMAGES = ROOT / "docs" / "images"
WAIT_S = 60.0
SETTLE_S = 3.0  # the graph is laid out and drawn after its text is there
FLAGS = (
    "--headless",
    "--no-sandbox",  # Chromium refuses to run as root with one
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


class Page:
    """A tab of the browser."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One DevTools command and its result, which each command of that protocol defines itself."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=WAIT_S))
            if message.get("id") == self._number:
                if "error" in message:
                    raise RetryLaterError(f"the browser refused {method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result

    def script(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def open(self, url: str, texts: list[str]) -> None:
        """Goes to the address and waits until all of the texts are on the page."""
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            seen = str(self.script("document.body ? document.body.innerText : ''"))
            if all(text in seen for text in texts):
                time.sleep(SETTLE_S)
                return
            time.sleep(0.5)
        raise RetryLaterError(f"{url}: not all of {texts} appeared within {WAIT_S:.0f} s; the page says: {seen[:300]}")

    def remember(self, items: dict[str, str]) -> None:
        """Puts items into the local storage of each page."""
        source = "".join(f"localStorage.setItem({json.dumps(k)}, {json.dumps(v)});" for k, v in items.items())
        self.call("Page.addScriptToEvaluateOnNewDocument", source=source)

    def save(self, file: Path) -> None:
        """Writes the visible page as PNG."""
        picture = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture)
        print(f"{file.relative_to(ROOT) if file.is_relative_to(ROOT) else file}: {len(picture) / 1000:.0f} kB")


@contextmanager
def browser(width: int, height: int) -> Iterator[Page]:
    """A tab of a Chromium that is closed with the block. Raises BadInputError where Chromium is not installed."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise BadInputError("no Chromium found; Debian 12: apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS, f"--window-size={width},{height}", f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            # A picture is longer than the 1 MiB that the client takes by default.
            with connect(_tab(Path(profile)), max_size=None) as socket:
                page = Page(socket)
                page.call("Page.enable")
                screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
                page.call("Emulation.setDeviceMetricsOverride", **screen)
                yield page
        finally:
            process.terminate()
            process.wait(timeout=20)


def _tab(profile: Path) -> str:
    """WebSocket address of the browser's first tab."""
    # Asked for port 0, Chromium chooses one and writes it here.
    port_file = profile / "DevToolsActivePort"
    deadline = time.monotonic() + WAIT_S
    while not port_file.is_file() or not port_file.read_text().strip():
        if time.monotonic() > deadline:
            raise RetryLaterError(f"Chromium did not start within {WAIT_S:.0f} s")
        time.sleep(0.2)
    port = port_file.read_text().split()[0]
    while True:
        targets = requests.get(f"http://{HOST}:{port}/json/list", timeout=10).json()
        pages = [target for target in targets if target["type"] == "page"]
        if pages:
            return str(pages[0]["webSocketDebuggerUrl"])
        time.sleep(0.2)


def take(local: Local, scenario: Scenario, images: Path) -> None:
    """Airflow's graph of the newest run, MLflow's runs of days, and the curves of the run of the whole chain."""
    api = AirflowApi(local.airflow_url, USER, local.password)
    dag = f"{scenario.name}_daily"
    runs = api.call("GET", f"/dags/{dag}/dagRuns", limit=1, order_by="-logical_date", run_type="backfill")["dag_runs"]
    if not runs:
        raise BadInputError(f"{dag} has no runs to show; `make demo` first")
    runs_url = local.runs_url(scenario.name)
    if runs_url is None:
        raise BadInputError(f"MLflow has no experiment {scenario.name}; `make demo` first")
    page_of_runs = runs_url.partition("?")[0]
    experiment = page_of_runs.split("/")[-2]
    chain = chain_run_id(local.mlflow_url, experiment)
    if chain is None:
        raise BadInputError("MLflow has no run of the whole chain; `make demo` first")
    metrics = [f"metrics.`{kind}/{task}`" for task in scenario.tasks for kind in ("auc", "calibration")]
    columns = {"selectedColumns": [*metrics, "metrics.`rows`", "metrics.`seconds_total`"]}
    # Where MLflow's UI keeps the columns that a person has chosen.
    key = f'MLflowLocalStorage-1.1-ExperimentPage-["{experiment}"]-ReactComponentState'
    with browser(1440, 640) as page:
        page.remember({**REMEMBERED, key: json.dumps(columns)})
        page.call("Network.setCookie", name="_token", value=api.token, url=local.airflow_url)
        page.open(f"{local.airflow_url}/dags/{dag}/runs/{runs[0]['dag_run_id']}", ["ingest", "deploy"])
        page.save(images / "airflow_dag.png")
        search = urlencode({"compareRunsMode": "TABLE", "searchFilter": "tags.`recloop.kind` = 'day'"})
        page.open(f"{runs_url}&{search}", [str(scenario.data.days.first)])
        page.save(images / "mlflow_days.png")
        curves = urlencode({"workflowType": "machine_learning"})
        page.open(f"{page_of_runs}/{chain}/model-metrics?{curves}", ["auc"])
        page.save(images / "mlflow_chain.png")


def main() -> int:
    """Takes the pictures; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make screenshots", description=__doc__)
    parser.add_argument("--scenario", default="movielens")
    parser.add_argument("--home", default=".recloop")
    parser.add_argument("--images", default=str(IMAGES))
    given = parser.parse_args()
    local = Local.load(Path(given.home).resolve())
    try:
        if local is None:
            raise BadInputError("no demo was started here; `make demo` first")
        take(local, load_scenario(scenario_file(given.scenario)), Path(given.images).resolve())
    except RecloopError as error:
        print(f"screenshots: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
