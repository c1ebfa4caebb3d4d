"""The scenario: one YAML file that describes one recommender, and the only place where a user writes.

`load_scenario` reads it, fills the defaults and refuses with one message per mistake: file, line, field, value,
remedy. The classes below are the reference of every field. Nothing heavier than pydantic is imported here, because
the DAG folder reads scenarios while Airflow parses it.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from feature_jobs.errors import BadInputError

NAME_PATTERN = r"^[a-z][a-z0-9_]*$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Day = Annotated[datetime.date, Field(description="A day, 2022-04-25.")]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of a scenario: unknown keys are refused, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), populate_by_name=True)


class Column(Section):
    """A typed column of a source table.

    `source` is the name in the file where it differs. `separator` splits a text cell into a list. `values` lists what
    may occur; anything else is quarantined with a reason, as are values outside `min`..`max` and cells that do not
    read as `type`. Empty cells are null; `required` columns quarantine the row instead.
    """

    type: Literal["int", "float", "string", "bool", "list[int]", "list[string]"]
    source: str | None = Field(None, alias="from")
    separator: str | None = None
    values: tuple[str | int, ...] | None = None
    min: float | None = None
    max: float | None = None
    required: bool = False


class Time(Section):
    """The column that tells when a row became known.

    `unit` of a numeric column, or `iso` for text such as 2022-04-25T10:00:00 (read in `zone` where it has no offset).
    `zone` also says where a day begins and ends.
    """

    column: str
    unit: Literal["s", "ms", "us", "ns", "iso"] = "s"
    zone: str = "UTC"


class Table(Section):
    """A table of the source: a file, a folder of files, or a glob, below `data.path`.

    `{ds}` (2022-04-25) or `{yyyymmdd}` in `path` names one day's partition.
    """

    path: str
    format: Literal["csv", "parquet"]
    delimiter: str = ","
    columns: dict[str, Column]


class Events(Table):
    """The log: a row for each thing that was shown. `time` is the event time."""

    time: Time


class Entity(Table):
    """What is known of a user, an item, …, joined to events by `key`.

    Without `time` the rows hold for all days. With `time` a row holds from that moment until the next row of the same
    key, and an event sees the newest row strictly before it.
    """

    key: str
    time: Time | None = None


class Days(Section):
    """The days of the data. `first` also lands and trains on everything from `warm_up_from` on, in one go.
    The chain passes over days in `skip`: days known to have no data."""

    first: Day
    last: Day | None = None
    warm_up_from: Day | None = None
    skip: tuple[Day, ...] = ()


class Data(Section):
    """Where the logs come from. `user` and `item` name the event columns that identify them. `fetch` names what
    `recloop fetch` brings there, `options` are its settings where it generates."""

    path: str
    fetch: str | None = None
    options: dict[str, int | float | str] = {}
    events: Events
    entities: dict[Name, Entity] = {}
    user: str
    item: str
    days: Days


class Ingest(Section):
    """`max_quarantined_share`: share of malformed rows above which the day is refused."""

    max_quarantined_share: Share = 0.01


class Join(Section):
    """`lookback_days`: how far trailing features look back. `label_delay_s`: how long after an event its outcome is
    known; trailing features that look at outcomes see only events at least that old."""

    lookback_days: Positive = 30
    label_delay_s: Annotated[int, Field(ge=0)] = 0


class Feature(Section):
    """Common to all features. `enabled: false` leaves it out of the model, not of the samples."""

    enabled: bool = True


class Embedding(Section):
    """Which ids of a table have rows. An id gets one when it has been seen `min_count` times (a count that halves
    every day); it loses it when unseen for more than `ttl_days` of event time, or while the table holds more than
    `capacity` rows and it is among the least seen. Ids without a row share the table's default row."""

    min_count: Annotated[int, Field(ge=1, le=255)] = 1
    ttl_days: Positive | None = None
    capacity: Positive | None = None


class EmbeddedFeature(Feature):
    """A feature of ids. `embedding` holds the settings of its table; a feature that shares another's has none."""

    embedding: Embedding = Embedding()


class IdFeature(EmbeddedFeature):
    """One id (int or text), embedded. `of`: column, `entity.column` or an expression; default: the feature's name.
    `table` shares the embeddings of another id feature."""

    kind: Literal["id"]
    of: str | None = None
    table: str | None = None


class IdsFeature(EmbeddedFeature):
    """Several ids from a list column, embedded and averaged."""

    kind: Literal["ids"]
    of: str | None = None
    table: str | None = None


class CrossFeature(EmbeddedFeature):
    """The combination of columns (or expressions) as one id."""

    kind: Literal["cross"]
    of: tuple[str, ...] = Field(min_length=2)


class NumberFeature(Feature):
    """A number. `scale: log` is sign(x)·log(1+|x|). `buckets`: embed it too, as one of about that many equal steps
    of the scaled value per unit."""

    kind: Literal["number"]
    of: str | None = None
    scale: Literal["log", "none"] = "log"
    buckets: Annotated[int, Field(ge=0)] = 0


class TrailingFeature(Feature):
    """Over the earlier events with the same `by` (columns or `entity.column`), within `window_days`, `where` holds."""

    by: tuple[str, ...] = Field(min_length=1)
    where: str | None = None
    window_days: Positive | None = None
    buckets: Annotated[int, Field(ge=0)] = 0


class CountFeature(TrailingFeature):
    """How many earlier events."""

    kind: Literal["count"]


class RateFeature(TrailingFeature):
    """Share of earlier events for which `of` holds, drawn to `prior` as if `prior_weight` events had that rate."""

    kind: Literal["rate"]
    of: str
    prior: Annotated[float, Field(gt=0, lt=1)] = 0.5
    prior_weight: Annotated[float, Field(gt=0)] = 10.0


class RecencyFeature(TrailingFeature):
    """Seconds since the last earlier event; null where there is none."""

    kind: Literal["recency"]


class SequenceFeature(EmbeddedFeature):
    """The last `length` values of `of` over earlier events with the same `by` where `where` holds, newest first.
    `history` names an `entity.column` list (oldest first) to go on with where the log is too short."""

    kind: Literal["sequence"]
    of: str
    by: str
    where: str | None = None
    length: Positive = 20
    table: str | None = None
    history: str | None = None


AnyFeature = Annotated[
    IdFeature
    | IdsFeature
    | CrossFeature
    | NumberFeature
    | CountFeature
    | RateFeature
    | RecencyFeature
    | SequenceFeature,
    Field(discriminator="kind"),
]


class Model(Section):
    """The network. `bottom` are the shared layers (`mmoe`: each expert's; `dlrm`: those of the numbers), `tower` each
    task's (`dlrm`: those above the products), and may be empty. `num_experts` are `mmoe`'s. `dcnv2` has `cross_layers`
    crosses, of `cross_rank` if given, that the MLP reads (`cross: stacked`) or has beside it (`parallel`)."""

    architecture: Literal["shared_bottom", "mmoe", "deepfm", "dcnv2", "dlrm"] = "shared_bottom"
    embedding_dim: Positive = 16
    bottom: Annotated[tuple[Positive, ...], Field(min_length=1)] = (128, 64)
    tower: tuple[Positive, ...] = (32,)
    num_experts: Positive = 4
    cross: Literal["stacked", "parallel"] = "stacked"
    cross_layers: Positive = 3
    cross_rank: Positive | None = None
    dropout: Share = 0.0


Sharding = Literal["table_wise", "row_wise", "column_wise", "data_parallel"]


class Distributed(Section):
    """How TorchRec shards the tables over `ranks` processes, if `train.backend` is `torchrec`. `ranks` counts those of
    all machines, each of which starts an equal share; torchrun's variables PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR
    and PET_MASTER_PORT tell a machine which it is, and not set that it is the only one.

    `kind`: of every table but those in `plan`; or `planner: true` lets TorchRec decide between table- and row-wise.
    `capacity`: rows that a table can hold (`default_capacity`: others), whose memory is taken at once; a table that
    evicts needs as many as two batches have ids more than its `embedding.capacity`. `communication`: in what embeddings
    and their gradients travel; between CPUs bf16 goes as fp16. `timeout_s`: how long a process or machine waits for
    another.

    `dense_communication`: in what the gradient of the dense part travels: rounded, or only the `top_k_share` of its
    values that are largest; what a step leaves out is added to the next. `hierarchical`: full precision within a node,
    and that only between nodes."""

    ranks: Positive = 2
    kind: Sharding = "row_wise"
    plan: dict[str, Sharding] = {}
    planner: bool = False
    capacity: dict[str, Positive] = {}
    default_capacity: Positive = 1_000_000
    communication: Literal["fp32", "fp16", "bf16"] = "fp32"
    dense_communication: Literal["fp32", "fp16", "int8", "top_k"] = "fp32"
    top_k_share: Annotated[float, Field(gt=0, le=1)] = 0.01
    hierarchical: bool = False
    timeout_s: Positive = 300


class Train(Section):
    """One pass over the day, from the parent. `holdout_share`: the day's last rows by event time, scored before they
    are learned from; they judge the challenger. `task_weights` default to 1.

    Embeddings: `embedding_optimizer` with `embedding_learning_rate` and `embedding_epsilon`; the rest: AdamW. Both
    rates rise from 0 over the chain's first `warmup_steps`. Each step learns `batch_size` rows, computed in
    micro-batches of `micro_batch` whose gradients are accumulated; `threads` share them, and change no bit by it.
    `clip_norm` shortens the dense gradient, and each embedding row's. `precision`: of the dense part's products;
    weights stay float32; float16 scales the loss dynamically. Steps whose gradient is not finite are skipped, counted.
    `snapshot_rows`: how often, in rows, a day's training notes where it is; a killed one goes on from there.

    `device`: where the dense part is computed; auto: a GPU if there is one. `cache_rows`: of the embeddings, how many
    are held where they are learned, in memory or (not set: as many as fit) on the GPU; the others lie in a file of
    `rows_folder` (not set: beside the checkpoint; with a GPU: in host memory). A cache changes no bit.

    `backend: torchrec` shards the tables over processes, see `distributed`; each computes its share of a batch in one
    piece, on the CPU; `device` is then where the tables are. It knows no `clip_norm`, no `cache_rows` and no `adam`.
    """

    learning_rate: Annotated[float, Field(gt=0)] = 0.001
    embedding_optimizer: Literal["rowwise_adagrad", "adagrad", "adam", "sgd"] = "rowwise_adagrad"
    embedding_learning_rate: Annotated[float, Field(gt=0)] = 0.05
    embedding_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: Positive = 512
    micro_batch: Positive = 2048
    holdout_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    task_weights: dict[str, float] = {}
    shuffle_rows: Positive = 1_000_000
    snapshot_rows: Positive = 10_000_000
    seed: int = 7
    threads: Positive = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cache_rows: Positive | None = None
    rows_folder: str | None = None
    backend: Literal["native", "torchrec"] = "native"
    distributed: Distributed = Distributed()


class Evaluate(Section):
    """`segments`: name → expression over event and entity columns; each is judged on its own too."""

    segments: dict[Name, str] = {}
    bootstrap: Positive = 200
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


class Validate(Section):
    """`suite`: expectations, relative to the scenario file; default NAME.expectations.json. Drift is the population
    stability index (Siddiqi 2006) of each named column, and the shift of each label's mean, against `trailing_days`."""

    suite: str | None = None
    trailing_days: Positive = 7
    drift_columns: tuple[str, ...] = ()
    max_psi: Annotated[float, Field(gt=0)] = 0.25
    max_label_shift: Annotated[float, Field(gt=0)] = 0.5
    drift_severity: Literal["blocking", "warning"] = "warning"


class SearchRange(Section):
    """Values of one config path: a range (`low`, `high`, `log`, `step`) or a list (`choices`)."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] | None = None


class Tune(Section):
    """`space`: config path → range. A trial replays `replay_days` past days from the checkpoint before them."""

    space: dict[str, SearchRange] = {}
    trials: Positive = 10
    replay_days: Positive = 2
    objective: Literal["auc", "normalized_entropy"] = "auc"
    workers: Positive = 2
    apply: Literal["person", "auto"] = "person"
    schedule: str = "0 6 * * 1"


class Quantize(Section):
    """Bits of the served embeddings (dense layers are int8), and what they may cost against fp32."""

    embedding_bits: Literal[4, 8] = 8
    max_auc_loss: Annotated[float, Field(ge=0)] = 0.002
    max_calibration_shift: Annotated[float, Field(ge=0)] = 0.02
    calibration_rows: Positive = 2048


class Deploy(Section):
    """`model`: the registered name, default the scenario's. A challenger may be worse than the champion by at most
    these, at the scenario's confidence."""

    model: str | None = None
    max_auc_drop: Annotated[float, Field(ge=0)] = 0.01
    max_segment_auc_drop: Annotated[float, Field(ge=0)] = 0.05
    max_calibration_error: Annotated[float, Field(gt=0)] = 0.25
    min_segment_rows: Positive = 200
    tolerance: Annotated[float, Field(gt=0)] = 1e-4
    keep_versions: Positive = 3


class Schedule(Section):
    """When Airflow runs it. `catch_up_from` is the first scheduled day; without it only the newest day is scheduled,
    and past days are backfilled."""

    daily: str = "0 3 * * *"
    catch_up_from: Day | None = None
    zone: str = "UTC"


class Scenario(Section):
    """One recommender. See the field classes for what each part means."""

    name: Name
    description: str = ""
    data: Data
    labels: dict[Name, str] = Field(min_length=1)
    outcomes: tuple[str, ...] = ()
    ingest: Ingest = Ingest()
    join: Join = Join()
    features: dict[Name, AnyFeature] = Field(min_length=1)
    model: Model = Model()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    validate_: Validate = Field(Validate(), alias="validate")
    tune: Tune = Tune()
    quantize: Quantize = Quantize()
    deploy: Deploy = Deploy()
    schedule: Schedule = Schedule()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the labels, in the order of the file."""
        return tuple(self.labels)

    @property
    def enabled_features(self) -> dict[str, Any]:
        """Features that the model sees, in the order of the file."""
        return {name: f for name, f in self.features.items() if f.enabled}

    @property
    def embeddings(self) -> dict[str, Embedding]:
        """Settings of the embedding tables, by the feature that holds the table."""
        holders = {n: f for n, f in self.features.items() if isinstance(f, EmbeddedFeature)}
        return {name: f.embedding for name, f in holders.items() if getattr(f, "table", None) in (None, name)}

    @property
    def model_name(self) -> str:
        """Registered model name."""
        return self.deploy.model or self.name

    _file: Path = PrivateAttr(Path("scenario.yaml"))

    @property
    def file(self) -> Path:
        """Where the scenario was read from, absolute; `recloop`'s messages name it."""
        return self._file

    @property
    def suite_file(self) -> Path:
        """The expectations of the scenario, a JSON file beside it."""
        return self._file.parent / (self.validate_.suite or f"{self.name}.expectations.json")


def load_scenario(
    path: str | Path, *, data: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Scenario:
    """Reads and checks a scenario.

    `data` replaces `data.path`; a relative path in the file is relative to the file. `overrides` are config paths
    and values, `{"train.learning_rate": 0.01}`, applied before the check: any path that the file could hold works.

    Raises BadInputError with a line for each mistake.
    """
    file = Path(path).resolve()
    document = _read_yaml(file)
    for dotted, value in (overrides or {}).items():
        _set_path(document, dotted, value)
    try:
        scenario = Scenario.model_validate(document)
    except ValidationError as error:
        from feature_jobs.explain import explain

        lines = [explain(file, document, e) for e in error.errors(include_url=False)]
        raise BadInputError("\n".join(dict.fromkeys(lines))) from None
    root = Path(data).resolve() if data else (file.parent / scenario.data.path).resolve()
    scenario = scenario.model_copy(update={"data": scenario.data.model_copy(update={"path": str(root)})})
    scenario._file = file
    return scenario


def place_of(file: Path, *location: str) -> str:
    """`FILE:LINE` of the deepest part of `location` that a scenario file holds, for what later checks say of it."""
    try:
        line = line_of(_read_yaml(file), list(location))
    except BadInputError:  # gone or changed since it was loaded
        line = None
    return f"{file}:{line}" if line else str(file)


def _read_yaml(file: Path) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        document = YAML(typ="rt").load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        others = sorted(p.name for p in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
        hint = f"there: {', '.join(others)}" if others else "no scenario there; `recloop init` proposes one"
        raise BadInputError(f"{file}: no such scenario file ({hint})") from None
    except (YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f":{where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or "not UTF-8 text"
        raise BadInputError(f"{file}{line}: not readable as YAML: {problem}; mend the line") from None
    if not isinstance(document, dict):
        raise BadInputError(f"{file}: holds {type(document).__name__}, not a scenario; start from `recloop init`")
    return document


def _set_path(document: Any, dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    node = document
    for key in parents:
        node = node.setdefault(key, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise BadInputError(f"config path {dotted}: {key} holds no fields; name a path of the scenario")
    node[leaf] = value


def line_of(document: Any, location: list[Any]) -> int | None:
    """The line of the deepest part of `location` that the document holds, counted from 1."""
    node, line = document, None
    for part in location:
        marks = getattr(node, "lc", None)
        if marks is None or not isinstance(node, dict) or part not in node:
            break
        line = int(marks.key(part)[0]) + 1 if marks.data and part in marks.data else line
        node = node[part]
    return line
