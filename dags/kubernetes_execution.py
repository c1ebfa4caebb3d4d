"""Execution mode `kubernetes`: each command of a step runs in its own pod, with the limits that the step declares.

The pod's specification has two sources. `infra/kubernetes/base/step-pod.yaml` has the parts that depend on the cluster:
service account, volumes, secrets. The step's declaration has the rest: image, arguments, limits, node pool. The
security settings are written here, so that they are the same in every cluster.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.utils.pod_manager import PodManager
from airflow.sdk import get_current_context
from airflow.sdk.exceptions import AirflowException
from kubernetes.client import models as k8s

from tasks.contract import Step
from tasks.run.container import NOBODY
from tasks.steps import STEPS

if TYPE_CHECKING:
    from airflow.sdk import Context

    from dags.execution import Sink

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "infra" / "kubernetes" / "base" / "step-pod.yaml"
GPU = "nvidia.com/gpu"
POOL = "recloop/pool"  # label of the nodes: cpu or gpu
SCRATCH_GIB = 8  # for /tmp, on the node's disk
STOP_WITHIN_S = 3  # less than Airflow's own limit for a task that it kills
DEADLINE_MARGIN_S = 120  # Airflow stops a task that takes too long; the cluster does it where Airflow is gone
START_WITHIN_S = 900  # a node pool may have to grow first
OUT_OF_MEMORY = "OOMKilled"


@dataclass(frozen=True)
class PodSettings:
    """Settings of a cluster. An image's name is made of `images` and `tag`: REGISTRY/recloop/step:TAG."""

    images: str
    tag: str
    namespace: str = "recloop-steps"
    template: Path = TEMPLATE
    kubeconfig: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> PodSettings:
        """Reads RECLOOP_IMAGES, RECLOOP_TAG, RECLOOP_NAMESPACE, RECLOOP_POD_TEMPLATE, KUBECONFIG. Raises ValueError."""
        tag = environment.get("RECLOOP_TAG", "")
        # The image of that name changes: two steps of a day could run two versions of the code.
        if not tag or tag == "latest":
            raise ValueError(
                f"RECLOOP_TAG={tag}: name the release of the step image that pods run, not latest: RECLOOP_TAG=0.1.0"
            )
        template = Path(environment.get("RECLOOP_POD_TEMPLATE") or TEMPLATE)
        if not template.is_file():
            raise ValueError(f"RECLOOP_POD_TEMPLATE={template}: no such file; mount {TEMPLATE.relative_to(ROOT)} there")
        namespace = environment.get("RECLOOP_NAMESPACE") or cls.namespace
        images = environment.get("RECLOOP_IMAGES") or "recloop"
        return cls(images, tag, namespace, template, environment.get("KUBECONFIG") or None)


class KubernetesExecution:
    """A pod for each command; see dags.execution.Execution. A pod that a lost worker left running is found again."""

    def __init__(self, settings: PodSettings, context: Callable[[], Context] = get_current_context) -> None:
        self._settings = settings
        self._context = context
        self._pod: StepPod | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> KubernetesExecution:
        """Configured from the environment. Raises ValueError where a setting is missing."""
        return cls(PodSettings.from_environment(environment))

    def run(self, arguments: Sequence[str], on_stdout: Sink, on_stderr: Sink) -> int:
        """See Execution. A pod has one log: the JSON line goes to `on_stdout`, all else to `on_stderr`."""
        declared = STEPS[arguments[0]]
        if declared.is_partial(dict.fromkeys(name for name in declared.options if f"--{name}" in arguments)):
            # A part's result stays on the disk of its machine. Pods share none, so no other pod could collect it.
            on_stderr(f"pods share no disk, so one pod does all the work of {declared.name}: the task after this one")
            on_stdout(json.dumps({"step": declared.name, "outcome": "done"}))
            return 0

        def hand_on(line: str) -> None:
            (on_stdout if is_result(line) else on_stderr)(line)

        self._pod = pod = StepPod(
            declared=declared, arguments=arguments, settings=self._settings, on_line=hand_on, task_id=declared.name
        )
        pod.execute_sync(self._context())
        code, reason = ended(pod.remote_pod, pod.base_container_name)
        if reason == OUT_OF_MEMORY:
            on_stderr(f"recloop: {declared.out_of_memory}")
        return code

    def kill(self) -> None:
        """See Execution. Deletes the pod."""
        if self._pod is not None:
            self._pod.on_kill()


class StepPod(KubernetesPodOperator):
    """Airflow's operator, except that the pod's end is not judged here: StepOperator reads `remote_pod` and decides."""

    def __init__(
        self,
        *,
        declared: Step,
        arguments: Sequence[str],
        settings: PodSettings,
        on_line: Callable[[str], None],
        **airflow: Any,
    ) -> None:
        of = _options(arguments)
        scenario = Path(of["--scenario"]).stem
        super().__init__(
            kubernetes_conn_id=None,
            config_file=settings.kubeconfig,
            in_cluster=not settings.kubeconfig,
            namespace=settings.namespace,
            pod_template_file=str(settings.template),
            name=self._set_name(f"{scenario}-{declared.name}-{of['--ds']}"),
            labels={
                "app.kubernetes.io/name": "recloop-step",
                "recloop/scenario": scenario,
                "recloop/step": declared.name,
                "recloop/ds": of["--ds"],
            },
            image=f"{settings.images}/{declared.role}:{settings.tag}",
            arguments=in_image(arguments),
            # OpenMP counts the cores of the node, not the container's limit, and would start a thread for each.
            env_vars=[k8s.V1EnvVar("OMP_NUM_THREADS", str(declared.resources.threads))],
            container_resources=limits_of(declared),
            node_selector={POOL: "gpu" if declared.resources.gpus else "cpu"},
            tolerations=[k8s.V1Toleration(key=GPU, operator="Exists", effect="NoSchedule")]
            if declared.resources.gpus
            else [],
            security_context=pod_security(),
            container_security_context=container_security(),
            active_deadline_seconds=declared.timeout_s + DEADLINE_MARGIN_S,
            termination_grace_period=STOP_WITHIN_S,
            startup_timeout_seconds=START_WITHIN_S,
            schedule_timeout_seconds=START_WITHIN_S,
            startup_check_interval_seconds=2,
            log_pod_spec_on_failure=False,
            **airflow,
        )
        self._on_line = on_line

    def build_pod_request_obj(self, context: Context | None = None, *, dry_run: bool = False) -> k8s.V1Pod:
        """The pod to send."""
        pod = super().build_pod_request_obj(context, dry_run=dry_run)
        # The operator would let `true` in the template override these.
        pod.spec.automount_service_account_token = False
        pod.spec.host_network = pod.spec.host_pid = pod.spec.host_ipc = None
        return pod

    @cached_property
    def pod_manager(self) -> PodManager:
        """Passes on the lines of the pod's log."""
        return _Lines(self.client, self._on_line)

    def cleanup(self, pod: k8s.V1Pod, remote_pod: k8s.V1Pod, *_: Any, **__: Any) -> None:
        """Deletes the pod, however it ended."""
        if self.pod is not None and not self._killed:
            self.process_pod_deletion(remote_pod or pod, reraise=False)


class _Lines(PodManager):
    """Follows a pod's log across lost connections, and passes each line to a sink instead of its own logger."""

    def __init__(self, client: Any, sink: Callable[[str], None]) -> None:
        super().__init__(kube_client=client)
        self._sink = sink

    def _log_message(self, message: str, *_: Any) -> None:
        for line in message.splitlines():
            self._sink(line)


def in_image(arguments: Sequence[str]) -> list[str]:
    """The command with the scenario's path relative to the project's root, which is the image's working folder."""
    changed = list(arguments)
    place = changed.index("--scenario") + 1
    file = Path(changed[place])
    if file.is_relative_to(ROOT):
        changed[place] = file.relative_to(ROOT).as_posix()
    return changed


def limits_of(declared: Step) -> k8s.V1ResourceRequirements:
    """Limits as declared. Requests are equal to them, so that a full node evicts this pod last."""
    wanted = declared.resources
    amounts = {
        "cpu": f"{math.ceil(wanted.cpus * 1000)}m",
        "memory": f"{math.ceil(wanted.memory_gib * 1024)}Mi",
        "ephemeral-storage": f"{SCRATCH_GIB}Gi",
        **({GPU: str(wanted.gpus)} if wanted.gpus else {}),
    }
    return k8s.V1ResourceRequirements(limits=amounts, requests=dict(amounts))


def pod_security() -> k8s.V1PodSecurityContext:
    """The pod security standard `restricted`, for the pod."""
    return k8s.V1PodSecurityContext(
        run_as_non_root=True,
        run_as_user=NOBODY,
        run_as_group=NOBODY,
        fs_group=NOBODY,
        # Otherwise each start of a pod changes the owner of every file on its volumes.
        fs_group_change_policy="OnRootMismatch",
        seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
    )


def container_security() -> k8s.V1SecurityContext:
    """The same standard for the container, and a read-only root file system."""
    return k8s.V1SecurityContext(
        allow_privilege_escalation=False,
        privileged=False,
        read_only_root_filesystem=True,
        run_as_non_root=True,
        capabilities=k8s.V1Capabilities(drop=["ALL"]),
    )


def ended(pod: k8s.V1Pod | None, container: str) -> tuple[int, str]:
    """Exit code of the pod's container and the cluster's reason for its end.

    Raises AirflowException, which Airflow retries, where the container itself did not end: an evicted pod, a lost
    node, a deadline.
    """
    status = pod.status if pod else None
    for found in (status and status.container_statuses) or []:
        terminated = found.state and found.state.terminated
        if found.name == container and terminated:
            return int(terminated.exit_code), str(terminated.reason or "")
    phase, reason, message = (getattr(status, name, None) for name in ("phase", "reason", "message"))
    raise AirflowException(
        f"the pod ended without its container's exit code: {phase} {reason or ''} {message or ''}".strip()
    )


def is_result(line: str) -> bool:
    """Says if a line is the JSON object that a step ends with."""
    if not line.startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _options(arguments: Sequence[str]) -> dict[str, str]:
    """`--name value` pairs of a step's command."""
    return {name: value for name, value in itertools.pairwise(arguments) if name.startswith("--")}
