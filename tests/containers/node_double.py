"""A local double of a cluster node: pods of tests/cluster_double.py run as containers of the local engine, with their
image, arguments, environment, limits, security context and volumes. One container a pod, on this machine's network."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.cluster_double import ClusterDouble
from tests.containers.engine import DOCKER, docker

UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


class NodeDouble(ClusterDouble):
    """`claims`: the folder of each persistent volume claim. `secrets`: name → key → value, also kept as files in
    `folder`. `environment` is added to every container's: the addresses of MLflow and the object store."""

    def __init__(
        self,
        claims: Mapping[str, Path],
        secrets: Mapping[str, Mapping[str, str]],
        environment: Mapping[str, str],
        folder: Path,
    ) -> None:
        super().__init__([])
        self.claims, self.secrets, self.environment, self.folder = claims, secrets, dict(environment), folder

    def command(self, pod: dict[str, Any]) -> list[str]:
        """Raises KeyError for a claim, a secret or a kind of volume that there is not."""
        spec = pod["spec"]
        [container] = spec["containers"]
        assert not container.get("command"), "a step's pod leaves the entry point to its image"
        options = [f"--name={pod['metadata']['name']}", "--network=host"]
        options += [*self._environment(container), *_limits(container), *_security(spec, container)]
        for mount in container["volumeMounts"]:
            [volume] = [volume for volume in spec["volumes"] if volume["name"] == mount["name"]]
            options += self._volume(volume, mount, spec["securityContext"]["fsGroup"])
        return [DOCKER, "run", *options, container["image"], *container["args"]]

    def end(self, pod: dict[str, Any]) -> None:
        """As a cluster does it: the one who deletes a pod does not wait, and its container has some seconds."""
        name, grace_s = pod["metadata"]["name"], pod["spec"].get("terminationGracePeriodSeconds", 30)

        def end() -> None:
            docker("stop", f"--time={grace_s}", name, check=False)
            docker("rm", "--force", "--volumes", name, check=False)

        threading.Thread(target=end).start()

    def reason_of(self, pod: dict[str, Any]) -> str:
        """OOMKilled where the kernel ended a process of the container for its memory limit."""
        state = "{{.State.OOMKilled}} {{.State.ExitCode}}"
        for _ in range(30):  # the engine may hear of it after the end
            out_of_memory, code = docker("inspect", "--format", state, pod["metadata"]["name"]).split()
            if out_of_memory == "true" or code != "137":
                break
            time.sleep(0.1)
        return "OOMKilled" if out_of_memory == "true" else "Error" if int(code) else "Completed"

    def _environment(self, container: dict[str, Any]) -> list[str]:
        values = {}
        for variable in container["env"]:
            if "valueFrom" in variable:
                wanted = variable["valueFrom"]["secretKeyRef"]
                values[variable["name"]] = self.secrets[wanted["name"]][wanted["key"]]
            else:
                values[variable["name"]] = variable["value"]
        return [f"--env={name}={value}" for name, value in {**values, **self.environment}.items()]

    def _volume(self, volume: dict[str, Any], mount: dict[str, Any], group: int) -> list[str]:
        place = mount["mountPath"]
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]
            folder = self.claims[claim["claimName"]]
            read_only = claim.get("readOnly") or mount.get("readOnly")
            if not read_only:
                _give_to_group(folder, group)
            return [f"--mount=type=bind,source={folder},target={place}{',readonly' if read_only else ''}"]
        if "secret" in volume:
            return [f"--mount=type=bind,source={self._secret_files(volume['secret'], group)},target={place},readonly"]
        if volume["emptyDir"].get("medium") == "Memory":
            return [f"--tmpfs={place}:rw,exec,nosuid,nodev,mode=1777,size={_bytes(volume['emptyDir']['sizeLimit'])}"]
        return [f"--volume={place}"]  # on the node's disk; the engine gives it the mode that the image's folder has

    def _secret_files(self, secret: dict[str, Any], group: int) -> Path:
        place: Path = self.folder / secret["secretName"]
        place.mkdir(parents=True, exist_ok=True)
        for key, value in self.secrets[secret["secretName"]].items():
            (place / key).write_text(value)
            os.chown(place / key, 0, group)
            (place / key).chmod(secret["defaultMode"])
        return place


def _limits(container: dict[str, Any]) -> list[str]:
    limits = container["resources"]["limits"]
    memory = _bytes(limits["memory"])
    cpus = int(limits["cpu"].removesuffix("m")) / (1000 if limits["cpu"].endswith("m") else 1)
    return [f"--memory={memory}", f"--memory-swap={memory}", f"--cpus={min(cpus, os.cpu_count() or 1)}"]


def _security(spec: dict[str, Any], container: dict[str, Any]) -> list[str]:
    pod, own = spec["securityContext"], container["securityContext"]
    options = [f"--user={pod['runAsUser']}:{pod['runAsGroup']}", f"--group-add={pod['fsGroup']}"]
    options += [f"--cap-drop={name}" for name in own["capabilities"]["drop"]]
    options += ["--read-only"] if own["readOnlyRootFilesystem"] else []
    options += [] if own["allowPrivilegeEscalation"] else ["--security-opt=no-new-privileges"]
    return options


def _give_to_group(folder: Path, group: int) -> None:
    """Does the same to a mounted volume as fsGroup with fsGroupChangePolicy OnRootMismatch."""
    if folder.stat().st_gid != group:
        subprocess.run(["chgrp", "--recursive", str(group), folder], check=True)
        subprocess.run(["chmod", "--recursive", "g+rwX", folder], check=True)
        folder.chmod(folder.stat().st_mode | 0o2000)


def _bytes(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]
