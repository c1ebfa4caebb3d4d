"""The step contract: a step is declared once, and everything else follows from the declaration.

    @step(reads={"samples": Input(), "parent": Input(of="checkpoint", days="previous")}, writes="checkpoint", ...)
    def train(config: DayConfig, *, samples: Path, parent: Path | None, checkpoint: Path) -> Metrics: ...

From it come the function call in a test, `recloop train`, the stage in dvc.yaml, the container's entry point and the
Airflow task. Edges are never written: a step that reads `samples` comes after the step that writes `samples`.

A step function is pure: it reads the folders it is given, writes files into its output folder, and returns metrics.
It asks no clock and no unseeded randomness, so equal inputs give equal files. It has heavy imports inside.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from feature_jobs.schema import Scenario
from feature_jobs.sources.user_ids import Found, Users

if TYPE_CHECKING:
    from tasks.store.scenario_store import ScenarioStore

Metrics = Mapping[str, object]
"""The report of a step: numbers by name, nested where that reads better. Times may be in it; files hold none.

Two names are special. `verdict`: a sentence on the day, shown on the day's run.
`series`: curves over the step's work, name → [[position, number], …], shown on the step's run and not printed."""


FolderOf = Callable[[str, str], Path]
"""Returns the folder of a committed output, by its name and day."""


@dataclass(frozen=True)
class Forgetting:
    """Functions that `recloop forget` calls for a step whose output holds users' rows under their ids.

    `find` counts the rows of these users in a committed folder. `leave_out` writes a folder again without them, and
    returns its metrics. A step without it is computed again from inputs that do not hold the rows. `begin` has a
    function for an output of another step that goes on from the day before: it changes a copy of the day's folder into
    one that a chain can begin with. Its last argument returns the folder of any committed output, by name and day.
    """

    find: Callable[[Scenario, Path, Users], Found]
    leave_out: Callable[[Scenario, Path, Users, Path], Metrics] | None = None
    begin: Mapping[str, Callable[[Scenario, str, Path, FolderOf], None]] = field(default_factory=dict)


ReadFile = Callable[[str], bytes | None]
"""Reads a file of a committed output by its name; None where the output has no such file."""


@dataclass(frozen=True)
class Choice:
    """A choice among the days of an input: those that `days` returns for the scenario and the day.

    It reads files of the output `by`; where that is not there, no day is chosen. With `by_digest` that output also
    names what the step reads of these days by digest, so that a step which depends on `by` depends on nothing else.
    """

    by: Input
    days: Callable[[Scenario, str, ReadFile], Collection[str]]
    by_digest: bool = False


@dataclass(frozen=True)
class Input:
    """An input of a step: the output called `of` (default: the argument's name) of some day.

    `same` day; `previous` day, None on the scenario's first; `trailing` days, as a dict ds → folder: those that a
    `choice` names, else as many as the config path `window` says, or the function `window` of the scenario (beside a
    choice, `window` says which days a later choice may name); `champion`, the checkpoint that served when the day
    began, or None; `former_champion`, the one before that, or None. An `optional` input is None where nothing is
    committed. `is_parent`: the output is a link of the chain, and this input is the link before it; its digest is
    recorded in the manifest as the parent.
    """

    of: str | None = None
    days: Literal["same", "previous", "trailing", "champion", "former_champion"] = "same"
    window: str | Callable[[Scenario], int] | None = None
    choice: Choice | None = None
    optional: bool = False
    is_parent: bool = False

    @property
    def is_named(self) -> bool:
        """Says if another input of the step names its content by digest."""
        return self.choice is not None and self.choice.by_digest


@dataclass(frozen=True)
class Option:
    """A whole number that the step's own command takes besides the day, as `--NAME`. With a `partial` option the run
    does a part of the step's work for another run to collect: it commits nothing."""

    help: str
    partial: bool = False


@dataclass(frozen=True)
class Resources:
    """Resources that a step may use; its container is limited to them."""

    cpus: float = 2.0
    memory_gib: float = 4.0
    gpus: int = 0

    @property
    def threads(self) -> int:
        """Threads that its CPUs are good for."""
        # Down, not up: the CPUs are a quota, and a thread beyond it waits for its share of time.
        return max(1, math.floor(self.cpus))


@dataclass(frozen=True)
class Table:
    """A table for a terminal: the first `left` columns are aligned at their left side, others at the right one."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


@dataclass(frozen=True)
class Step:
    """A declared step. `config` names the config paths that its output depends on, `files` the properties of
    the scenario that are paths of files it depends on. `imports` are the modules that its function imports: they are
    loaded before the function is called, so that their time does not count as compute. `options` are its command's own.
    `needs` is a config path without whose value the step has nothing to do. `variants` are config paths whose values
    name the output, so that a day can hold several: with other values the step is not done yet. `shows` describes a
    committed folder to a person at a terminal, who may copy commands with the given options. `after` is called by the
    command with the scenario and the committed folder: it does work that a step may not do, because a step writes only
    its output. `keep_only` is called after rows of users were left out of days, with the newest committed folder or
    None: it removes what `after` has made elsewhere of other folders.

    `daily` steps make up the daily DAG. A step says no by raising GateError after it wrote its output. Then `on_no`
    `fail` stops the day and keeps the output aside, uncommitted; `skip` commits the output with the refusal in its
    manifest, and a scheduler sees a skipped task. `registry` steps talk to MLflow while they run, the others to nobody;
    `tracked` ones are shown there as a run after their commit. `headline` names its metrics that the runs of the day
    and of the chain show, as path → name; a `*` stands for one part of the path: `{"progressive/*/auc": "auc/*"}`.
    `trials` is the file of its output that lists trials, each shown as a run of its own.
    A `resumable` step notes where it is, see DayConfig.
    A `shared` step can be computed by several machines, each of which runs its command; the leader's output is
    committed (models.distributed.nodes).
    `forgetting` is declared by a step whose output keeps rows under users' ids, and from which other outputs get them:
    `recloop forget` looks there for the first day that knows a user.
    `source` steps read the scenario's source; `uncompared` are files of their output that may differ where a day's
    source is read again. `touched_until` names a function, as module:function so that its code is not a part of the
    step's: of the scenario, a day, and the tables of its source that were corrected, it returns the last day whose
    output can differ. Without it, or where it returns None, these are all later days that read something which changes.
    `asset` is the name under which a scheduler announces a new output to others; without it the output is not
    announced. Two declarations give a step the store itself, besides its folders:
    `appends` names a log of the store whose records the step reads, and to which it adds one while it runs, so its
    output depends on the log's content at that moment; `keeps` names a folder of the store for its own working files.
    """

    name: str
    function: Callable[..., Metrics]
    reads: Mapping[str, Input]
    writes: str
    config: tuple[str, ...]
    files: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    options: Mapping[str, Option] = field(default_factory=dict)
    needs: str | None = None
    variants: tuple[str, ...] = ()
    shows: Callable[[Path, str], list[str | Table]] | None = None
    after: Callable[[Scenario, Path], None] | None = None
    keep_only: Callable[[Scenario, Path | None], None] | None = None
    image: str = "step"
    resources: Resources = Resources()
    timeout_s: int = 3600
    daily: bool = True
    on_no: Literal["fail", "skip"] = "fail"
    registry: bool = False
    tracked: bool = True
    headline: Mapping[str, str] = field(default_factory=dict)
    trials: str | None = None
    resumable: bool = False
    shared: bool = False
    source: bool = False
    uncompared: tuple[str, ...] = ()
    touched_until: str | None = None
    forgetting: Forgetting | None = None
    keeps: str | None = None
    asset: str | None = None
    appends: str | None = None

    @property
    def store_folder(self) -> str | None:
        """The folder of the store that it may write besides its output; without one it does not see the store."""
        return self.appends or self.keeps

    @property
    def doc(self) -> str:
        """First paragraph of the function's docstring."""
        return (inspect.getdoc(self.function) or "").split("\n\n")[0]

    def has_work(self, scenario: Scenario) -> bool:
        """Says if the scenario has the value that the step needs."""
        # By alias, because config paths name keys as the file writes them: `validate`, not `validate_`.
        return self.needs is None or bool(value_at(scenario.model_dump(by_alias=True), self.needs))

    def is_partial(self, options: Mapping[str, Any]) -> bool:
        """Says if a run with these options commits nothing."""
        return any(self.options[name].partial for name in options)

    @property
    def role(self) -> str:
        """The role of its image: a step that asks for GPUs runs the same code in an image with CUDA."""
        return f"{self.image}-cuda" if self.resources.gpus else self.image

    @property
    def out_of_memory(self) -> str:
        """The message for a container that reached the step's memory limit."""
        return (
            f"out of memory: {self.name} needed more than its limit of {self.resources.memory_gib:g} GiB; raise"
            f" Resources(memory_gib=...) where {self.name} is declared, or let the scenario ask for less"
        )


@dataclass(frozen=True)
class DayConfig:
    """Arguments of a step function besides its folders.

    `store` is set when the step runs inside one (steps that keep to their folders don't look at it). `progress` asks
    for a progress bar, else plain lines. `options` are the command's own, see `Step.options`. `resume` is given to
    resumable steps: a folder that outlives a killed run, and that the next one finds if its inputs are the same.
    """

    scenario: Scenario
    ds: str
    store: ScenarioStore | None = None
    generation: int = 0
    progress: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    resume: Path | None = None


def value_at(document: Any, path: str) -> Any:
    """The value at a dotted config path; None where the document has none."""
    for part in path.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document


def step(
    *,
    reads: Mapping[str, Input],
    writes: str,
    config: tuple[str, ...],
    **declared: Any,
) -> Callable[[Callable[..., Metrics]], Callable[..., Metrics]]:
    """Declares the function as the step of its name; `tasks.steps.STEPS` lists all of them."""

    def declare(function: Callable[..., Metrics]) -> Callable[..., Metrics]:
        declaration = Step(function.__name__, function, dict(reads), writes, config, **declared)
        # The function itself goes back, not a wrapper: a test calls it with folders of its own, and no store.
        function.step = declaration  # type: ignore[attr-defined]
        return function

    return declare
