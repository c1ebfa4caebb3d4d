"""The image of a step: small, without tools, with a list of what it holds, built twice alike."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from infra.images import FOLDER, Parts, build, code_digest, write_sbom
from infra.servers import free_ports
from tasks.run.container import NOBODY
from tests.containers.engine import TAG, docker
from tests.waiting import awaited

pytestmark = [pytest.mark.container, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("none_left")]
MAX_IMAGE_BYTES = 1.85e9  # torch is the most of it; clients of Delta, Iceberg, Postgres and Kafka are 0.2 GB
SECRET = "correct-horse-battery-staple"


def test_the_image_is_small_runs_as_nobody_and_says_what_code_it_holds(step_image: str) -> None:
    [image] = json.loads(docker("image", "inspect", step_image))
    assert image["Size"] < MAX_IMAGE_BYTES
    assert image["Config"]["User"] == f"{NOBODY}:{NOBODY}"
    assert image["Config"]["Entrypoint"] == ["recloop"]
    assert image["Config"]["Labels"]["recloop.code"] == code_digest()
    print(f"{step_image}: {image['Size'] / 1e9:.2f} GB")


def test_the_image_holds_no_build_tools_and_no_more_of_the_project_than_its_role_needs(step_image: str) -> None:
    tools = "for t in pip pip3 uv gcc cc make git ld; do command -v $t; done; ls -A /opt/app; ls -A /build /src 2>&1"
    said = docker("run", "--rm", "--network", "none", "--entrypoint", "sh", step_image, "-c", tools, check=False)
    rooms = {"feature_jobs", "models", "serving", "tasks", "scenarios"}
    found = {line for line in said.split("\n") if line and "No such file" not in line}
    assert {line for line in found if not line.endswith(".dist-info")} == rooms


def test_recloop_is_the_entry_and_works_on_a_read_only_file_system(step_image: str) -> None:
    hardened = ["--read-only", "--network", "none", "--cap-drop", "ALL", "--tmpfs", "/tmp"]
    said = docker("run", "--rm", *hardened, step_image, "train", "--help")
    assert "Scores the day with its parent" in said
    assert "recloop, version" in docker("run", "--rm", *hardened, step_image, "--version")


def test_a_notebook_asks_for_its_token_and_does_not_start_without_one(
    step_image: str, parts: Parts, tmp_path: Path
) -> None:
    image = build("notebook", parts, TAG)
    hardened = ["--rm", "--read-only", "--network", "host", "--cap-drop", "ALL", "--tmpfs", "/tmp"]
    assert "no token of 16 characters" in docker("run", *hardened, image, check=False)
    [port] = free_ports(0)
    token = tmp_path / "token"
    token.write_text(SECRET)
    os.chown(token, NOBODY, NOBODY)
    token.chmod(0o400)
    work = tmp_path / "work"
    work.mkdir()
    given = [f"--volume={token}:/run/secrets/jupyter_token:ro", f"--volume={work}:/work:ro"]
    place = ["--ip", "127.0.0.1", "--port", str(port), "--no-browser"]
    notebook = docker("run", "--detach", *hardened, *given, image, *place).strip()

    def status(path: str, **headers: str) -> int:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    try:
        awaited(lambda: status("api"), within_s=60)
        paths = ("api/contents", "api/kernels", "api/terminals")
        assert {path: status(path) for path in paths} == dict.fromkeys(paths, 403)
        assert status("api/contents", Authorization=f"token {SECRET}") == 200
        assert SECRET not in docker("logs", notebook, check=False) + docker("inspect", notebook)
    finally:
        docker("rm", "--force", notebook)


def test_the_list_of_what_the_image_holds_names_every_package(step_image: str, tmp_path: Path) -> None:
    write_sbom("step", TAG, tmp_path / "sbom.json")
    packages = json.loads((tmp_path / "sbom.json").read_text())["packages"]
    listed = {(package["name"].lower().replace("_", "-"), package.get("versionInfo", "")) for package in packages}
    locked = {tuple(line.split("==")) for line in (FOLDER / "step.lock").read_text().split()}
    names = {(name.replace(".", "-"), version.partition("+")[0]) for name, version in listed}
    assert locked - names == set()


def test_two_builds_hold_the_same_files(step_image: str, parts: Parts, tmp_path: Path) -> None:
    again = build("step", parts, "again", fresh=True)
    first, second = (_files_of(image, tmp_path / "image.tar") for image in (step_image, again))
    assert len(first) > 10_000
    assert {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)} == set()


def _files_of(image: str, archive: Path) -> dict[str, tuple[int, str]]:
    """Mode, and digest of the content or target of the link, of every file of an image's file system."""
    container = docker("create", image).strip()
    docker("export", "--output", str(archive), container)
    docker("rm", container)
    found = {}
    with tarfile.open(archive) as files:
        for member in files:
            stream = files.extractfile(member) if member.isfile() else None
            content = hashlib.file_digest(stream, "sha256").hexdigest() if stream else member.linkname
            found[member.name] = (member.mode, content)
    return found
