"""Makes the MLflow user that steps log in as, or gives it the password of its file where it is there already.

Such a user may make experiments and models, manages those that are its own, reads all others, and administers nobody.
MLflow's admin does this over its REST API; the name and the password of the admin come from the server's own settings.
"""

from __future__ import annotations

import argparse
import base64
import configparser
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

TIMEOUT_S = 30.0
CREATE, SET_PASSWORD = ("POST", "users/create"), ("PATCH", "users/update-password")


def main(arguments: list[str] | None = None) -> int:
    """The command line. Ends with 1, and MLflow's answer, where MLflow says no or nothing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--server", required=True, help="Address of MLflow, such as http://mlflow:5000.")
    parser.add_argument("--auth", type=Path, required=True, help="The server's MLFLOW_AUTH_CONFIG_PATH.")
    parser.add_argument("--name", required=True, help="Name of the user.")
    parser.add_argument("--password-file", type=Path, required=True, help="File that holds the user's password.")
    given = parser.parse_args(arguments)
    settings = configparser.ConfigParser(interpolation=None)
    settings.read_string(given.auth.read_text())
    admin = f"{settings['mlflow']['admin_username']}:{settings['mlflow']['admin_password']}"
    user = {"username": given.name, "password": given.password_file.read_text().strip()}
    try:
        status, said = _call(given.server, CREATE, admin, user)
        if "RESOURCE_ALREADY_EXISTS" in said:
            status, said = _call(given.server, SET_PASSWORD, admin, user)
    except OSError as error:
        status, said = 0, str(error)
    if status != 200:
        print(f"MLflow at {given.server} did not make the user {given.name}: {status or ''} {said}", file=sys.stderr)
        return 1
    return 0


def _call(server: str, call: tuple[str, str], admin: str, body: dict[str, str]) -> tuple[int, str]:
    """Status and text of MLflow's answer."""
    method, path = call
    headers = {
        "Authorization": "Basic " + base64.b64encode(admin.encode()).decode(),
        "Content-Type": "application/json",
    }
    url = f"{server}/api/2.0/mlflow/{path}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method=method)  # noqa: S310 (our server)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
