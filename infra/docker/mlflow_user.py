"""Creates the MLflow user that steps log in as, or sets its password where the user exists already.

This user may create experiments and models, manages its own, reads all others, and has no rights over other users.
MLflow's REST API does this for the admin, whose name and password are in the server's own settings.
"""

from __future__ import annotations

import argparse
import configparser
import sys
from pathlib import Path

import requests

TIMEOUT_S = 30.0
CREATE, SET_PASSWORD = ("POST", "users/create"), ("PATCH", "users/update-password")


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns 1, and prints MLflow's answer, where MLflow refuses or does not answer."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--server", required=True, help="Address of MLflow, such as http://mlflow:5000.")
    parser.add_argument("--auth", type=Path, required=True, help="The server's MLFLOW_AUTH_CONFIG_PATH.")
    parser.add_argument("--name", required=True, help="Name of the user.")
    parser.add_argument("--password-file", type=Path, required=True, help="File that holds the user's password.")
    given = parser.parse_args(arguments)
    # A password may hold a %.
    settings = configparser.ConfigParser(interpolation=None)
    settings.read_string(given.auth.read_text())
    admin = settings["mlflow"]["admin_username"], settings["mlflow"]["admin_password"]
    user = {"username": given.name, "password": given.password_file.read_text().strip()}
    try:
        answer = _call(given.server, CREATE, admin, user)
        if "RESOURCE_ALREADY_EXISTS" in answer.text:
            answer = _call(given.server, SET_PASSWORD, admin, user)
        problem = "" if answer.ok else f"{answer.status_code} {answer.text}"
    except requests.RequestException as error:
        problem = str(error)
    if problem:
        print(f"MLflow at {given.server} did not create the user {given.name}: {problem}", file=sys.stderr)
        return 1
    return 0


def _call(server: str, call: tuple[str, str], admin: tuple[str, str], body: dict[str, str]) -> requests.Response:
    method, path = call
    return requests.request(method, f"{server}/api/2.0/mlflow/{path}", auth=admin, json=body, timeout=TIMEOUT_S)


if __name__ == "__main__":
    sys.exit(main())
