"""The scenario: one YAML file that describes one recommender, and the only place where a user writes.

The classes are the reference of every field, in the order of a scenario file. Nothing heavier than pydantic is imported
here, because the DAG folder reads scenarios while Airflow parses it.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from feature_jobs.schema.base import (
    AnyNumber,
    AnyWhole,
    ClockTime,
    Day,
    LayerWidth,
    ModelName,
    Name,
    Number,
    NumDays,
    NumRows,
    PathText,
    Positive,
    Section,
    Tolerance,
    Whole,
)
from feature_jobs.schema.features import AnyFeature, EmbeddedFeature, Embedding
from feature_jobs.schema.yaml_file import place_of, setting_at


class Column(Section):
    """A typed column of a source table.

    `source` is the name in the file where it differs. `separator` splits a text cell into a list. `values` lists the
    values allowed; anything else is quarantined with a reason, as are values outside `min`..`max` and cells that do not
    read as `type`. Empty cells and NaN are null; `required` columns quarantine the row instead. Files of some days may
    lack an `optional` column, which is then null; any other missing column refuses the day.

    A `time` is a moment: a Parquet timestamp or date, a number in `unit`, or text in ISO 8601 (2022-04-25T10:00:00) or
    in `date_format` (strptime's, "%d/%m/%Y %H:%M"). Where it has no offset, it is read in the zone of the table's time
    (of the events' where the table has none). In expressions a difference of two times is a number of seconds.
    """

    type: Literal["int", "float", "string", "bool", "list[int]", "list[string]", "time"]
    source: str | None = Field(None, alias="from")
    separator: str | None = None
    values: tuple[str | AnyWhole, ...] | None = None
    min: AnyNumber | None = None
    max: AnyNumber | None = None
    required: bool = False
    optional: bool = False
    unit: Literal["s", "ms", "us", "ns", "iso"] = "iso"
    date_format: str | None = None


class Time(Section):
    """The column that says when a row became known.

    A column of type `time` has its own unit. For others: `unit` of a numeric column, or `iso` for text such as
    2022-04-25T10:00:00 (read in `zone` where it has no offset). The events' `zone` also says where a day begins.
    """

    column: str
    unit: Literal["s", "ms", "us", "ns", "iso"] = "s"
    zone: str = "UTC"


class Table(Section):
    """A table of the source: a file, a folder of files, or a glob, below `data.path`. A path that exists is itself,
    even if it holds characters of a glob.

    `{ds}` (2022-04-25) or `{yyyymmdd}` in `path` names one day's partition, as do `{yyyy}`, `{mm}` and `{dd}` (`{m}`
    and `{d}`: without leading zeros) in folders such as year={yyyy}/month={mm}/day={dd}. Folders such as country=DE
    are columns of text. `format: jsonl` is one JSON object a line; an absent key is null.
    """

    path: PathText
    format: Literal["csv", "parquet", "jsonl"]
    delimiter: str = ","
    columns: dict[str, Column]


class Events(Table):
    """The log: a row for each thing that was shown. `time` is the event time."""

    time: Time


class Entity(Table):
    """A table of facts about users, items, …, joined to events by `key`.

    Without `time` the rows hold for all days. With `time` a row holds from that moment until the next row of the same
    key, and an event sees the newest row strictly before it.
    """

    key: str
    time: Time | None = None


class Days(Section):
    """The days of the data. `first` also ingests and trains on everything from `warm_up_from` on, in one go.
    The chain passes over days in `skip`: days known to have no data.

    A day begins at `day_starts` ("07:00") on the clock of the events' zone, and ends where the next one begins: on days
    on which clocks change it has 23 or 25 hours. A time that the clock skips is read with the offset before the change,
    one that it shows twice is the first."""

    first: Day
    last: Day | None = None
    warm_up_from: Day | None = None
    skip: tuple[Day, ...] = ()
    day_starts: ClockTime = "00:00"


class Data(Section):
    """The logs and their folder. `user` and `item` name the event columns that identify them. `fetch` names the data
    set that `recloop fetch` brings there, `options` are its settings where it generates."""

    path: PathText
    fetch: str | None = None
    options: dict[str, AnyWhole | AnyNumber | str] = {}
    events: Events
    entities: dict[Name, Entity] = {}
    user: str
    item: str
    days: Days


class Ingest(Section):
    """`max_quarantined_share`: share of malformed rows above which the day is refused."""

    max_quarantined_share: Annotated[Number, Field(ge=0, le=1)] = 0.01


class Join(Section):
    """`lookback_days`: days that trailing features look back. `label_delay_s`: seconds from an event until its outcome
    is known; trailing features that look at outcomes see only events at least that old."""

    lookback_days: NumDays = 30
    label_delay_s: Annotated[Whole, Field(ge=0, le=315_360_000)] = 0


class Model(Section):
    """The network. `bottom` are the shared layers (`mmoe`: each expert's; `dlrm`: those of the numbers), `tower` each
    task's (`dlrm`: those above the products), and may be empty. `num_experts` are `mmoe`'s. `dcnv2` has `cross_layers`
    crosses, of `cross_rank` if given, that the MLP reads (`cross: stacked`) or has beside it (`parallel`)."""

    architecture: Literal["shared_bottom", "mmoe", "deepfm", "dcnv2", "dlrm"] = "shared_bottom"
    embedding_dim: Annotated[Positive, Field(le=4_096)] = 16
    bottom: Annotated[tuple[LayerWidth, ...], Field(min_length=1, max_length=50)] = (128, 64)
    tower: Annotated[tuple[LayerWidth, ...], Field(max_length=50)] = (32,)
    num_experts: Annotated[Positive, Field(le=256)] = 4
    cross: Literal["stacked", "parallel"] = "stacked"
    cross_layers: Annotated[Positive, Field(le=100)] = 3
    cross_rank: LayerWidth | None = None
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0


Sharding = Literal["table_wise", "row_wise", "column_wise", "data_parallel"]


class Distributed(Section):
    """Sharding of the tables by TorchRec over `ranks` processes, if `train.backend` is `torchrec`. `ranks` counts those
    of all machines, each of which starts an equal share; torchrun's variables PET_NNODES, PET_NODE_RANK,
    PET_MASTER_ADDR and PET_MASTER_PORT give each machine its rank; where they are not set, it is the only machine.

    `kind`: of every table but those in `plan`; or `planner: true` lets TorchRec decide between table- and row-wise.
    `capacity`: rows that a table can hold (`default_capacity`: others), whose memory is taken at once; a table that
    evicts needs as many as two batches have ids more than its `embedding.capacity`. `communication`: the format in
    which embeddings and their gradients are sent; between CPUs bf16 is sent as fp16. `timeout_s`: seconds that a
    process or machine waits for another.

    `dense_communication`: compression of the dense part's gradient: rounded, or only the `top_k_share` of its values
    that are largest; a step adds the values left out to the next. `hierarchical`: full precision within a node, and
    that only between nodes."""

    ranks: Annotated[Positive, Field(le=1_024)] = 2
    kind: Sharding = "row_wise"
    plan: dict[str, Sharding] = {}
    planner: bool = False
    capacity: dict[str, NumRows] = {}
    default_capacity: NumRows = 1_000_000
    communication: Literal["fp32", "fp16", "bf16"] = "fp32"
    dense_communication: Literal["fp32", "fp16", "int8", "top_k"] = "fp32"
    top_k_share: Annotated[Number, Field(gt=0, le=1)] = 0.01
    hierarchical: bool = False
    timeout_s: Annotated[Positive, Field(le=604_800)] = 300


class Train(Section):
    """One pass over the day, from the parent. `holdout_share`: the day's last rows by event time, scored before they
    are learned from; they judge the challenger. `task_weights` default to 1.

    Embeddings: `embedding_optimizer` with `embedding_learning_rate` and `embedding_epsilon`; the rest: AdamW. Both
    rates rise from 0 over the chain's first `warmup_steps`. Each step learns `batch_size` rows, computed in
    micro-batches of `micro_batch` whose gradients are accumulated; `threads` share them, and change no bit by it.
    `clip_norm` shortens the dense gradient, and each embedding row's. `precision`: of the dense part's products;
    weights stay float32; float16 scales the loss dynamically; auto takes the faster of bfloat16 and float32 on the
    processor or GPU that trains the day, so that digests depend on it. Steps whose gradient is not finite are skipped,
    and counted.
    `snapshot_rows`: rows of a day's training between two snapshots; a killed one goes on from the last.

    `device`: the device of the dense part; auto: a GPU if there is one. `cache_rows`: number of embedding rows that are
    held beside the computation, in memory or (not set: as many as fit) on the GPU; the others lie in a file of
    `rows_folder` (not set: beside the checkpoint; with a GPU: in host memory). A cache changes no bit.

    `backend: torchrec` shards the tables over processes, see `distributed`; each computes its share of a batch in one
    piece, on the CPU; `device` is then that of the tables. It knows no `clip_norm`, no `cache_rows` and no `adam`.
    """

    learning_rate: Annotated[Number, Field(gt=0, le=1_000)] = 0.001
    embedding_optimizer: Literal["rowwise_adagrad", "adagrad", "adam", "sgd"] = "rowwise_adagrad"
    embedding_learning_rate: Annotated[Number, Field(gt=0, le=1_000)] = 0.05
    embedding_epsilon: Annotated[Number, Field(gt=0, le=1)] = 1e-8
    weight_decay: Annotated[Number, Field(ge=0, le=1_000)] = 0.0
    warmup_steps: Annotated[Whole, Field(ge=0, le=1_000_000_000)] = 0
    clip_norm: Annotated[Number, Field(gt=0, le=1e9)] | None = None
    precision: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    batch_size: Annotated[Positive, Field(le=10_000_000)] = 512
    micro_batch: Annotated[Positive, Field(le=10_000_000)] = 2048
    holdout_share: Annotated[Number, Field(gt=0, lt=1)] = 0.2
    task_weights: dict[str, Annotated[Number, Field(ge=0, le=1e9)]] = {}
    shuffle_rows: NumRows = 1_000_000
    snapshot_rows: NumRows = 10_000_000
    seed: Annotated[Whole, Field(ge=0, le=100_000_000)] = 7
    threads: Annotated[Positive, Field(le=1_024)] = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cache_rows: NumRows | None = None
    rows_folder: PathText | None = None
    backend: Literal["native", "torchrec"] = "native"
    distributed: Distributed = Distributed()


class Evaluate(Section):
    """`segments`: name → expression over event and entity columns; each is judged on its own too. A label with fewer
    than `rare_positives` positives a day gets a warning, because its metrics of one day vary by chance."""

    segments: dict[Name, str] = {}
    rare_positives: NumRows = 100
    bootstrap: Annotated[Positive, Field(le=100_000)] = 200  # resamples
    confidence: Annotated[Number, Field(gt=0.5, lt=1)] = 0.95


class Validate(Section):
    """`suite`: expectations, relative to the scenario file; default NAME.expectations.json. Drift is the population
    stability index (Siddiqi 2006) of each named column, and the shift of each label's mean, against `trailing_days`.
    `drift_columns` default to the numbers and ids of few values that are read from the row itself: trailing counts and
    rates move as history grows, and features of `event_time` move with the weekday. Of the default ones,
    growing counters are left out, and one that differs from all trailing days must differ from the same weekday too
    (before there is one: from the same kind of day, weekend or not). Columns that are named are always judged, against
    the same weekday where `trailing_days` reaches back to one."""

    suite: PathText | None = None
    trailing_days: NumDays = 7
    drift_columns: tuple[str, ...] = ()
    max_psi: Annotated[Number, Field(gt=0, le=1e9)] = 0.25  # a large change by the rule of thumb of credit scoring
    max_label_shift: Annotated[Number, Field(gt=0, le=1e9)] = 0.5
    drift_severity: Literal["blocking", "warning"] = "warning"


class SearchRange(Section):
    """Values of one config path: a range (`low`, `high`, `log`, `step`) or a list (`choices`)."""

    low: AnyNumber | None = None
    high: AnyNumber | None = None
    log: bool = False
    step: AnyNumber | None = None
    choices: tuple[Any, ...] | None = None


class Tune(Section):
    """`space`: config path → range. A trial replays `replay_days` past days from the checkpoint before them."""

    space: dict[str, SearchRange] = {}
    trials: Annotated[Positive, Field(le=10_000)] = 10
    replay_days: NumDays = 2
    objective: Literal["auc", "normalized_entropy"] = "auc"
    workers: Annotated[Positive, Field(le=128)] = 2
    apply: Literal["person", "auto"] = "person"
    schedule: str = "0 6 * * 1"  # on Mondays at 06:00


class Quantize(Section):
    """Bits of the served embeddings (dense layers are int8), and the loss allowed against fp32."""

    embedding_bits: Literal[4, 8] = 8
    max_auc_loss: Tolerance = 0.002
    max_calibration_shift: Tolerance = 0.02
    calibration_rows: Annotated[Positive, Field(le=10_000_000)] = 2048


class Deploy(Section):
    """`model`: the registered name, default the scenario's. `max_…` say how much worse than the champion a challenger
    may be, at the scenario's confidence.

    A comparison of fewer than `min_rows` rows (`min_segment_rows` in a segment), or of fewer than `min_positives`
    positives or negatives, is unknown. `when_unsure`: promote or hold a version that no gate refuses, but that could
    not be judged. `after_rollback`: let later days promote, or hold them until a person lifts the hold."""

    model: ModelName | None = None
    max_auc_drop: Tolerance = 0.01
    max_segment_auc_drop: Tolerance = 0.05
    max_calibration_error: Annotated[Number, Field(gt=0, le=1e9)] = 0.25
    min_rows: NumRows = 200
    min_segment_rows: NumRows = 200
    min_positives: NumRows = 30  # a sum of fewer is not near a normal distribution
    when_unsure: Literal["promote", "hold"] = "promote"
    after_rollback: Literal["hold", "promote"] = "hold"
    tolerance: Annotated[Number, Field(gt=0, le=1e9)] = 1e-4
    keep_versions: Annotated[Positive, Field(le=1_000_000)] = 3


class Schedule(Section):
    """Times of Airflow's runs. `catch_up_from` is the first scheduled day; without it only the newest day is scheduled,
    and past days are backfilled."""

    daily: str = "0 3 * * *"  # at 03:00
    catch_up_from: Day | None = None
    zone: str = "UTC"


class Store(Section):
    """`keep_days`: `recloop gc` deletes the files of older days that nothing needs any more; without it, none."""

    keep_days: NumDays | None = None


class Scenario(Section):
    """One recommender. Each part has a section of its own."""

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
    # Not `validate`, which is a method of pydantic's.
    validate_: Validate = Field(Validate(), alias="validate")
    tune: Tune = Tune()
    quantize: Quantize = Quantize()
    deploy: Deploy = Deploy()
    schedule: Schedule = Schedule()
    store: Store = Store()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the labels, in the order of the file."""
        return tuple(self.labels)

    @property
    def enabled_features(self) -> dict[str, Any]:
        """Features that the model sees, in the order of the file; of type Any, because each kind has its own fields."""
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

    # Private, so that it is in no dump of the scenario: a digest of settings must not depend on where the file is.
    _file: Path = PrivateAttr(Path("scenario.yaml"))

    @property
    def file(self) -> Path:
        """Absolute path of the file that the scenario was read from; `recloop`'s messages name it."""
        return self._file

    _given: tuple[str, ...] = PrivateAttr(())

    @property
    def option(self) -> str:
        """`-s movielens`: how a printed command names this scenario, with its data and settings where those were given
        on the command line, so that the command runs when it is copied."""
        usual = self.file.parent == Path("scenarios").resolve() and self.file.suffix == ".yaml"
        return shlex.join(["-s", self.file.stem if usual else str(self.file), *self._given])

    def place_of(self, *location: str) -> str:
        """Source of the value at a config path: `--set PATH=VALUE` of the command line, else FILE:LINE."""
        return setting_at(self._given, location) or place_of(self._file, *location)

    @property
    def suite_file(self) -> Path:
        """The expectations of the scenario, a JSON file beside it."""
        return self._file.parent / (self.validate_.suite or f"{self.name}.expectations.json")
