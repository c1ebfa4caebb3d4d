"""Prepares `make compose-up`: folders, secrets and settings, created once and kept.

    .recloop/platform/compose.env   settings, none of them secret
    .recloop/platform/secrets/      one file for each secret, readable by its owner alone
    .recloop/platform/...           folders of Postgres and the object store, the worker's logs and its cache

Containers run as the folders' owner: the user who runs this command, or user 10001 instead of root.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path

from infra.servers import ROOT, USER, free_ports, write_private
from tasks.run.container import NOBODY, engine_address, release

HOME = ROOT / ".recloop" / "platform"
FOLDERS = ("secrets", "postgres", "objects", "airflow-logs", "cache")
PORTS = {"Airflow": 8080, "MLflow": 5000, "Objects": 8333}  # other ports are chosen where these are in use
BUCKET, STEPS_USER = "recloop", "recloop-steps"  # the store's bucket, and the user that may use only this one
MLFLOW_BUCKET = MLFLOW_USER = "mlflow"  # the same of MLflow's artifacts
ACTIONS = ("Read", "Write", "List")
BUCKETS_USER = "buckets"  # creates both buckets, and is used for nothing else
TOKENS = (
    "postgres-password",
    "airflow-database-password",
    "mlflow-database-password",
    "redis-password",
    "mlflow-password",
    "mlflow-recloop-password",
    "airflow-api-key",
    "airflow-jwt-key",
    "mlflow-session-key",
    "buckets-secret-key",
    "objects-secret-key",
    "store-secret-key",
)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m infra.platform", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--home", type=Path, default=HOME, help="Folder for all of it.")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="Folder of the scenarios' logs.")
    parser.add_argument("--images", default="recloop", help="Prefix of our images, such as registry.example/recloop.")
    parser.add_argument("--tag", default=release(), help="Tag of our images.")
    given = parser.parse_args(arguments)
    ports = ports_in(prepare(given.home.resolve(), given.data.resolve(), given.images, given.tag))
    logins = (
        f"user {USER}, password in ",
        f"user {USER}, password in ",
        f"the store s3://{BUCKET}/store, credentials in ",
    )
    files = ("airflow-passwords", "mlflow-password", "store-credentials")
    for (name, port), login, file in zip(ports.items(), logins, files, strict=True):
        print(f"{name} http://127.0.0.1:{port}  {login}{given.home}/secrets/{file}")
    return 0


def prepare(home: Path, data: Path, images: str, tag: str) -> Path:
    """Creates missing files and folders, and returns the file of settings. Existing secrets are kept."""
    uid, gid = (os.getuid(), os.getgid()) if os.getuid() else (NOBODY, NOBODY)
    data.mkdir(parents=True, exist_ok=True)
    for name in FOLDERS:
        folder = home / name
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        os.chown(folder, uid, gid)
    # Those that exist stay: the databases were created with them.
    for name, text in texts(kept(home / "secrets")).items():
        file = home / "secrets" / name
        if not file.exists():
            write_private(file, text)
        os.chown(file, uid, gid)
    socket = Path(engine_address().removeprefix("unix://"))
    file = home / "compose.env"
    ports = ports_in(file) if file.exists() else dict(zip(PORTS, free_ports(*PORTS.values()), strict=True))
    # Postgres looks its user up by number, and its image knows only a user of its own.
    (home / "passwd").write_text(f"postgres:x:{uid}:{gid}::/tmp:/sbin/nologin\n")
    settings = {
        "RECLOOP_HOME": home,
        "RECLOOP_ROOT": ROOT,
        "RECLOOP_DATA_FOLDER": data,
        "RECLOOP_UID": uid,
        "RECLOOP_GID": gid,
        "RECLOOP_ENGINE_SOCKET": socket,
        "RECLOOP_ENGINE_GID": socket.stat().st_gid if socket.exists() else gid,
        "RECLOOP_IMAGES": images,
        "RECLOOP_TAG": tag,
        **{f"RECLOOP_{name.upper()}_PORT": port for name, port in ports.items()},
    }
    file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    return file


def ports_in(settings: Path) -> dict[str, int]:
    """Ports on the loopback; chosen once, so that they stay the same after a restart."""
    values = dict(line.split("=", 1) for line in settings.read_text().splitlines())
    return {name: int(values.get(f"RECLOOP_{name.upper()}_PORT", usual)) for name, usual in PORTS.items()}


def kept(folder: Path) -> dict[str, str]:
    """The tokens of an earlier call, and new ones for those that are missing."""
    return {
        name: (folder / name).read_text() if (folder / name).exists() else secrets.token_urlsafe(32) for name in TOKENS
    }


def texts(tokens: Mapping[str, str]) -> dict[str, str]:
    """Content of each secret's file. Tokens are safe in URLs, in INI files and in shells."""
    airflow, mlflow = tokens["airflow-database-password"], tokens["mlflow-database-password"]
    auth = {
        "default_permission": "READ",
        "database_uri": f"postgresql+psycopg2://mlflow:{mlflow}@postgres/mlflow_users",
        "admin_username": USER,
        "admin_password": tokens["mlflow-password"],
        "auth_cache_ttl_seconds": 60,  # else MLflow hashes the password for each request, for 0.3 s
    }
    return {
        **tokens,
        "airflow-fernet-key": urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "airflow-passwords": json.dumps({USER: secrets.token_urlsafe(12)}),
        "airflow-database-url": f"postgresql+psycopg2://airflow:{airflow}@postgres/airflow",
        "mlflow-database-url": f"postgresql+psycopg2://mlflow:{mlflow}@postgres/mlflow",
        "mlflow-auth": "[mlflow]\n" + "".join(f"{name} = {value}\n" for name, value in auth.items()),
        "redis-config": f"requirepass {tokens['redis-password']}\n",
        "redis-url": f"redis://:{tokens['redis-password']}@redis:6379/0",
        "objects-identities": json.dumps({"identities": identities(tokens)}),
        "buckets-credentials": credentials(BUCKETS_USER, tokens["buckets-secret-key"]),
        "objects-credentials": credentials(MLFLOW_USER, tokens["objects-secret-key"]),
        "store-credentials": credentials(STEPS_USER, tokens["store-secret-key"]),
    }


def identities(tokens: Mapping[str, str]) -> list[dict[str, object]]:
    """Users of SeaweedFS and their rights. MLflow and the steps read, write and list one bucket each."""
    rights = {
        (BUCKETS_USER, "buckets-secret-key"): [f"Admin:{bucket}" for bucket in (MLFLOW_BUCKET, BUCKET)],
        (MLFLOW_USER, "objects-secret-key"): [f"{action}:{MLFLOW_BUCKET}" for action in ACTIONS],
        (STEPS_USER, "store-secret-key"): [f"{action}:{BUCKET}" for action in ACTIONS],
    }
    return [
        {"name": user, "credentials": [{"accessKey": user, "secretKey": tokens[token]}], "actions": actions}
        for (user, token), actions in rights.items()
    ]


def credentials(key: str, secret: str) -> str:
    """The text of a file of shared credentials, as clients of S3 read it."""
    return f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"


if __name__ == "__main__":
    sys.exit(main())
