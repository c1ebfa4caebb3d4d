"""The MLflow user of steps on a real server with the platform's own settings: it can do their work, and no more."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.docker import mlflow_user
from tests.environment import inherited
from tests.mlflow_server import ADMIN, STEPS_USER, Server, server_with_passwords
from tests.paths import ROOT
from tests.small import days, write_small

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_with_passwords(tmp_path_factory.mktemp("platform")) as found:
        yield found


@pytest.mark.parametrize(
    "path",
    [
        "",
        "version",
        "metrics",
        "signup",
        "graphql",
        "docs",
        "openapi.json",
        "get-artifact",
        "v1/traces",
        "api/2.0/mlflow/experiments/search?max_results=1",
        "ajax-api/2.0/mlflow/experiments/search?max_results=1",
        "api/2.0/mlflow/registered-models/search",
        "api/2.0/mlflow/users/list",
        "api/2.0/mlflow-artifacts/artifacts",
    ],
)
def test_without_a_password_nothing_is_shown(server: Server, path: str) -> None:
    assert server.ask(path)[0] == 401


def test_the_user_of_steps_administers_nobody(server: Server) -> None:
    users = "api/2.0/mlflow/users"
    new = {"username": "another", "password": "one that is long enough"}
    attempts = [
        ("POST", f"{users}/create", new),
        ("PATCH", f"{users}/update-admin", {"username": STEPS_USER, "is_admin": True}),
        ("PATCH", f"{users}/update-password", {**new, "username": ADMIN}),
        ("DELETE", f"{users}/delete", {"username": ADMIN}),
        ("POST", "api/3.0/mlflow/roles/create", {"name": "any", "workspace": "default"}),
    ]
    for method, path, body in attempts:
        assert server.ask(path, STEPS_USER, method, **body)[0] == 403, path
        assert server.ask(path, "", method, **body)[0] == 401, path
    assert '"is_admin":false' in server.ask(f"{users}/get?username={STEPS_USER}", STEPS_USER)[1].replace(" ", "")


def test_what_the_admin_made_is_read_and_not_changed(server: Server) -> None:
    experiments = "api/2.0/mlflow/experiments"
    made = json.loads(server.ask(f"{experiments}/create", ADMIN, "POST", name="the admin's")[1])
    assert server.ask(f"{experiments}/get?experiment_id={made['experiment_id']}", STEPS_USER)[0] == 200
    assert server.ask(f"{experiments}/update", STEPS_USER, "POST", **made, new_name="mine")[0] == 403
    assert server.ask(f"{experiments}/delete", STEPS_USER, "POST", **made)[0] == 403


def test_making_the_user_again_takes_the_new_password(server: Server) -> None:
    file, me = server.secrets / "mlflow-recloop-password", f"api/2.0/mlflow/users/get?username={STEPS_USER}"
    before = file.read_text()
    file.write_text("another that is long enough")
    assert server.ask(me, STEPS_USER)[0] == 401
    assert server.make_user() == 0
    assert server.ask(me, STEPS_USER)[0] == 200
    file.write_text(before)
    assert server.make_user() == 0


def test_a_no_is_reported(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    auth, password = tmp_path / "mlflow-auth", tmp_path / "password"
    auth.write_text("[mlflow]\nadmin_username = admin\nadmin_password = 100%wrong\n")
    password.write_text("long enough as it is")
    arguments = ["--auth", str(auth), "--name", STEPS_USER, "--password-file", str(password)]
    assert mlflow_user.main(["--server", server.uri, *arguments]) == 1
    assert f"MLflow at {server.uri} did not create the user {STEPS_USER}: 401" in capsys.readouterr().err
    assert mlflow_user.main(["--server", "http://127.0.0.1:1", *arguments]) == 1
    assert "Connection refused" in capsys.readouterr().err


def test_the_user_of_steps_can_do_what_steps_do(server: Server, tmp_path: Path) -> None:
    scenario = write_small(tmp_path / "shop", num_days=1)
    login = {"MLFLOW_TRACKING_USERNAME": STEPS_USER, "MLFLOW_TRACKING_PASSWORD": server.password(STEPS_USER)}
    command = [sys.executable, "-P", "-m", "tasks", "run", "-s", str(scenario), "--ds", days(1)[0]]
    done = subprocess.run(
        [*command, "--store", str(tmp_path / "store")],
        env={**inherited(), **login, "MLFLOW_TRACKING_URI": server.uri},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "could not" not in done.stderr
    status, said = server.ask("api/2.0/mlflow/registered-models/get?name=shop", STEPS_USER)
    assert (status, json.loads(said)["registered_model"]["aliases"]) == (200, [{"alias": "champion", "version": "1"}])
    experiments = json.loads(server.ask("api/2.0/mlflow/experiments/search?max_results=10", STEPS_USER)[1])[
        "experiments"
    ]
    assert "shop" in {experiment["name"] for experiment in experiments}
