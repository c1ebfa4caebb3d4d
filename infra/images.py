"""`python -m infra.images build ROLE...` builds the images of infra/docker from this checkout: recloop/ROLE:VERSION.
`python -m infra.images sbom ROLE...` lists their content in build/ROLE.spdx.json.

The base images are those of infra/docker/images.lock, by digest. Where no registry can be reached, `--local` uses local
substitutes, which `infra/engine.sh base` and this module put into the engine; the role `local-services` replaces the
third-party images of compose. The certificates that this machine trusts (SSL_CERT_FILE, or Debian's bundle) are trusted
during the build, and are not in an image.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from feature_jobs.errors import RecloopError
from tasks.run.container import release
from tasks.store.source_digest import ROOMS

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "infra" / "docker"
ROLES = ("step", "step-cuda", "airflow", "mlflow", "notebook")
LOCAL_SERVICES = "local-services"
CERTIFICATES = Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True)
class Parts:
    """Images that a build starts from: the base, uv, and optionally wheels that are preferred to the package index."""

    base: str
    uv: str
    wheels: str = "scratch"

    @classmethod
    def pinned(cls) -> Parts:
        """The images of the lock."""
        base, uv = (FOLDER / "images.lock").read_text().split()
        return cls(base, uv)

    @classmethod
    def local(cls) -> Parts:
        """Local substitutes: uv from the package index, and pip's folder of wheels, if this machine has one.

        Raises RecloopError where uv can't be installed.
        """
        pinned = cls.pinned()
        # Without the digest, because an image that was imported here has another one.
        base, uv = pinned.base.split("@")[0], pinned.uv.split("@")[0]
        with tempfile.TemporaryDirectory() as folder:
            wanted = f"uv=={uv.rpartition(':')[2]}"
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, wanted]
            if subprocess.run(install, check=False, stdout=sys.stderr).returncode:
                raise RecloopError(f"{wanted} could not be installed; pip's message is above")
            _import("recloop-uv", {"uv": Path(folder) / "bin" / "uv"})
        wheels = [wheel for folder in wheel_folders() for wheel in folder.glob("*.whl")]
        if wheels:
            _import("recloop-wheels", {wheel.name: wheel for wheel in wheels})
        return cls(base, "recloop-uv", "recloop-wheels" if wheels else "scratch")


def docker() -> str:
    """The Docker command: DOCKER, else the first on the path that has BuildKit. Raises RecloopError for none."""
    if chosen := os.environ.get("DOCKER"):
        return chosen
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        found = shutil.which("docker", path=folder)
        # A certificate authority of a company goes in as a secret, which BuildKit alone has; it stays in no layer.
        if found and "--secret" in _help_of(found):
            return found
    raise RecloopError("no Docker command with BuildKit on the path; install docker-buildx, or name one in DOCKER")


# Each build and each import asks, and an answer costs a process.
@functools.cache
def _help_of(program: str) -> str:
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    return subprocess.run(
        [program, "build", "--help"], env=environment, capture_output=True, text=True, check=False
    ).stdout


def build(role: str, parts: Parts, tag: str, *, fresh: bool = False) -> str:
    """Builds one role's image and returns its name. `fresh`: without the engine's cache.

    Raises RecloopError where the build fails; the engine's message is on stderr.
    """
    name = f"recloop/{role}:{tag}"
    context = ROOT / "infra" / "compose" / "local" if role == LOCAL_SERVICES else ROOT
    file = context / "Dockerfile" if role == LOCAL_SERVICES else FOLDER / "Dockerfile"
    # The usual build brings gigabytes of CUDA.
    torch = "" if role == "step-cuda" or parts.wheels != "scratch" else "cpu"
    arguments = {
        "ROLE": role,
        "BASE": parts.base,
        "UV": parts.uv,
        "WHEELS": parts.wheels,
        "TORCH": torch,
        "CODE": code_digest(),
        "REVISION": revision(),
        "VERSION": release(),
    }
    command = [docker(), "build", "--network", "host", "--file", str(file), "--target", role, "--tag", name]
    command += [item for key, value in arguments.items() for item in ("--build-arg", f"{key}={value}")]
    command += ["--secret", f"id=ca,src={CERTIFICATES}"] if CERTIFICATES.is_file() else []
    command += ["--no-cache"] if fresh else []
    # The engine's lines not to stdout, where a script reads the image's name.
    done = subprocess.run(
        [*command, str(context)], env={**os.environ, "DOCKER_BUILDKIT": "1"}, check=False, stdout=sys.stderr
    )
    if done.returncode:
        raise RecloopError(f"{name} could not be built; the engine's message is above")
    return name


def write_sbom(role: str, tag: str, file: Path) -> None:
    """Lists the content of an image as SPDX JSON. Raises RecloopError where that fails."""
    file.parent.mkdir(parents=True, exist_ok=True)
    syft = str(Path(sys.executable).with_name("syft"))
    command = [syft, "scan", "--quiet", f"docker:recloop/{role}:{tag}", "--output", f"spdx-json={file}"]
    if subprocess.run(command, env={**os.environ, "SYFT_CHECK_FOR_APP_UPDATE": "false"}, check=False).returncode:
        raise RecloopError(f"recloop/{role}:{tag}: its content could not be listed; syft's message is above")


def code_digest() -> str:
    """One digest of the names and content of all source files."""
    digest = hashlib.sha256()
    for file in sorted(file for room in ("dags", *ROOMS) for file in (ROOT / room).rglob("*.py")):
        # With separators, or the end of a file could count as the beginning of the next one's name.
        digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def revision() -> str:
    """The checked-out commit, marked `-dirty` where files differ from it."""
    # Without tags, which `describe` would name instead of the commit.
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def wheel_folders() -> list[Path]:
    """Folders of wheels that pip's configuration names: a CPU build of torch may lie there."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line.partition("=") for line in done.stdout.splitlines()]
    # A link may also be a page on the web, and uv stops at a folder that does not exist.
    named = {folder for key, _, value in lines if key.endswith(".find-links") for folder in value.strip("'").split()}
    return [Path(folder) for folder in sorted(named) if Path(folder).is_dir()]


def _import(name: str, files: dict[str, Path]) -> None:
    """Creates an image of some files and nothing else. Raises RecloopError where the engine refuses it."""
    with subprocess.Popen([docker(), "import", "-", name], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as engine:
        stdin = cast("IO[bytes]", engine.stdin)
        # The engine's own message says more.
        # w|: a stream, because a pipe can't go back to correct a header.
        with contextlib.suppress(BrokenPipeError), tarfile.open(fileobj=stdin, mode="w|") as archive:
            for place, file in files.items():
                archive.add(file.resolve(), arcname=place)
    if engine.returncode:
        raise RecloopError(f"{name} could not be created; the engine's message is above")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m infra.images", description=__doc__)
    parser.add_argument("command", choices=["build", "sbom"])
    parser.add_argument("roles", nargs="+", choices=[*ROLES, LOCAL_SERVICES], metavar="ROLE")
    parser.add_argument("--tag", default=release(), help="default: the project's version")
    parser.add_argument(
        "--local", action="store_true", help="local substitutes for base images, where no registry is reachable"
    )
    given = parser.parse_args(arguments)
    try:
        if given.command == "sbom":
            for role in given.roles:
                write_sbom(role, given.tag, ROOT / "build" / f"{role}.spdx.json")
            return 0
        parts = Parts.local() if given.local else Parts.pinned()
        for role in given.roles:
            print(build(role, parts, given.tag))
    except RecloopError as error:
        print(f"images: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
