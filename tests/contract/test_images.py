"""Contents of the images, as far as they are visible without a build."""

import fnmatch
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from infra.docker import slim
from infra.images import FOLDER, ROLES, Parts
from tests.paths import ROOT

DOCKERFILE = (FOLDER / "Dockerfile").read_text()


def _versions(lock: Path) -> dict[str, str]:
    lines = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def test_every_role_has_a_stage_and_a_lock() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, flags=re.MULTILINE))
    assert set(ROLES) <= stages
    assert {file.stem for file in FOLDER.glob("*.lock")} == {*ROLES, "images"}


@pytest.mark.parametrize("role", ROLES)
def test_a_roles_versions_are_those_of_the_one_lock(role: str) -> None:
    ours, theirs = _versions(FOLDER / f"{role}.lock"), _versions(ROOT / "infra" / "requirements.lock")
    assert {name: version for name, version in ours.items() if theirs.get(name, version) != version} == {}
    wanted = {
        re.split(r"[\[#\s]", line)[0] for line in (FOLDER / f"{role.removesuffix('-cuda')}.in").read_text().splitlines()
    }
    if role == "step-cuda":
        wanted = wanted - {"fbgemm-gpu-cpu"} | {"fbgemm-gpu"}
    assert {name.replace(".", "-") for name in wanted} - {"", "-r"} <= set(ours)


def test_the_cuda_image_is_the_step_image_with_the_libraries_of_cuda() -> None:
    cpu, cuda = _versions(FOLDER / "step.lock"), _versions(FOLDER / "step-cuda.lock")
    assert cpu.pop("fbgemm-gpu-cpu") == cuda.pop("fbgemm-gpu"), "the same kernels, built with CUDA"
    assert cuda.items() >= cpu.items()
    assert all(name.startswith(("cuda-", "nvidia-", "triton")) for name in cuda.keys() - cpu.keys())
    assert "FROM step AS step-cuda" in DOCKERFILE


def test_the_step_image_has_neither_airflow_nor_a_test_runner() -> None:
    assert not {"apache-airflow", "dvc", "pytest", "ruff", "mypy", "pip", "uv"} & set(_versions(FOLDER / "step.lock"))


def test_bases_are_pinned_by_digest_and_every_role_runs_as_nobody() -> None:
    for image in (Parts.pinned().base, Parts.pinned().uv):
        assert re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", image)
    defaults = re.findall(r"^ARG (?:BASE|UV)=(\S+)$", DOCKERFILE, flags=re.MULTILINE)
    assert defaults == [image.split("@")[0] for image in (Parts.pinned().base, Parts.pinned().uv)]
    _, _, runtime = DOCKERFILE.partition("AS runtime")
    assert re.findall(r"^USER (.*)$", runtime, flags=re.MULTILINE) == ["10001:10001"]
    assert not re.search(r"(?i)(password|secret_key|token)=\S", DOCKERFILE)


@pytest.mark.parametrize(
    ("place", "goes_in"),
    [
        ("tasks/train.py", True),
        ("scenarios/movielens.yaml", True),
        ("infra/docker/step.lock", True),
        (".git/config", False),
        (".recloop/store/shop/journal.jsonl", False),
        ("data/ml-100k/u.data", False),
        ("scenarios/data/u.data", False),
        (".venv/bin/python", False),
        ("tests/small.py", False),
        ("tasks/__pycache__/train.cpython-311.pyc", False),
        (".env", False),
        ("infra/compose/secrets/password", False),
    ],
)
def test_a_build_gets_the_code_and_no_data_or_secret(place: str, goes_in: bool) -> None:
    assert _is_sent(place) is goes_in


def _is_sent(place: str) -> bool:
    """Docker's rule: the last line that matches the path, or a folder above it, decides."""
    sent, parts = True, place.split("/")
    above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if not line or line.startswith("#"):
            continue
        if any(_matches(path, pattern) for path in above):
            sent = line.startswith("!")
    return sent


def _matches(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch.fnmatch(path.rpartition("/")[2], pattern[3:])
    return path.count("/") == pattern.count("/") and fnmatch.fnmatch(path, pattern)


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), FOLDER / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_a_stripped_library_still_loads(tmp_path: Path) -> None:
    import safetensors

    [compiled] = Path(safetensors.__file__).parent.glob("*.so")
    library = tmp_path / compiled.name
    library.write_bytes(compiled.read_bytes())
    slim.strip(library)
    assert library.stat().st_size <= compiled.stat().st_size
    assert struct.unpack_from("<Q", library.read_bytes(), 40) == (0,)  # no section headers
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import _safetensors_rust as s; print(s.serialize({{}}))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_file_that_is_not_a_library_is_left_as_it_is(tmp_path: Path) -> None:
    text = tmp_path / "libm.so"
    text.write_text("INPUT(libm.so.6)")
    slim.strip(text)
    assert text.read_text() == "INPUT(libm.so.6)"
