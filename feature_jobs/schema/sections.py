"""The scenario: one YAML file that describes one recommender, and the only place where a user writes.

The classes are the reference of every field, in the order of a scenario file: a text below a key is its sentence in
docs/reference.md, and a test requires one for each key. Nothing heavier than pydantic is imported here, because the
DAG folder reads scenarios while Airflow parses it.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator

from feature_jobs.schema.base import AnyNumber, Day, Name, Number, NumDays, Positive, Section, Whole
from feature_jobs.schema.data import Data
from feature_jobs.schema.features import AnyFeature, EmbeddedFeature, Embedding
from feature_jobs.schema.gates import Deploy, Evaluate, Quantize, Validate
from feature_jobs.schema.labels import Label, OutcomeLabel
from feature_jobs.schema.negatives import NegativeSampler
from feature_jobs.schema.training import Model, Train
from feature_jobs.schema.yaml_file import place_of, setting_at


class Ingest(Section):
    """Reading the day's files."""

    max_quarantined_share: Annotated[Number, Field(ge=0, le=1)] = 0.01
    """The share of malformed rows above which the day is refused."""


DelaySeconds = Annotated[Whole, Field(ge=0, le=315_360_000)]  # ten years, as for days


class Join(Section):
    """Joining the day's events with what was known before each of them."""

    lookback_days: NumDays = 30
    """The number of days that trailing features look back."""
    label_delay_s: DelaySeconds = 0
    """Seconds from an event until its outcome is known; trailing features that look at outcomes see only events at
    least that old."""
    outcome_delay_s: dict[str, DelaySeconds] = {}
    """Those of single labels, or of columns of outcomes, by their names: {click: 7200, order: 259200}; others have
    `label_delay_s`."""
    negative_sampler: NegativeSampler | None = None
    """The negative rows that are added to the log's own; none without it."""


class SearchRange(Section):
    """Values of one config path: a range (`low`, `high`, `log`, `step`) or a list (`choices`)."""

    low: AnyNumber | None = None
    """The smallest value of the range."""
    high: AnyNumber | None = None
    """The largest value of the range."""
    log: bool = False
    """Draws from the range on a logarithmic scale."""
    step: AnyNumber | None = None
    """The distance between the values of the range."""
    choices: tuple[Any, ...] | None = None
    """The values to choose from."""


class Tune(Section):
    """The search for better settings."""

    space: dict[str, SearchRange] = {}
    """The values to search, by config path: train.learning_rate."""
    trials: Annotated[Positive, Field(le=10_000)] = 10
    """The number of settings that are tried."""
    replay_days: NumDays = 2
    """The number of past days that a trial trains again, from the checkpoint before them."""
    objective: Literal["auc", "normalized_entropy"] = "auc"
    """The metric that decides which trial is best."""
    workers: Annotated[Positive, Field(le=128)] = 2
    """The number of Airflow tasks that share the trials."""
    apply: Literal["person", "auto"] = "person"
    """The writer of a proposal into the scenario file: a person by `recloop accept`, or the tuning run itself."""
    schedule: str = "0 6 * * 1"  # on Mondays at 06:00
    """The times of the tuning DAG's runs, as cron writes them."""


class Schedule(Section):
    """Times of Airflow's runs."""

    daily: str = "0 3 * * *"  # at 03:00
    """The times of the daily DAG's runs, as cron writes them."""
    catch_up_from: Day | None = None
    """The first scheduled day; without it only the newest day is scheduled, and past days are backfilled."""
    zone: str = "UTC"
    """The time zone of the schedules."""


class Store(Section):
    """The files of older days."""

    keep_days: NumDays | None = None
    """The number of days whose files `recloop gc` keeps; of older ones it deletes the files that are no longer needed.
    Without it, all are kept."""


class Online(Section):
    """The features of requests. With this section, which may be empty, the daily DAG has the step `materialize`, which
    makes the state at each day's end; a server computes the features of requests from it."""

    store: str | None = None
    """The online store, which also takes rows of the day as they come: a folder, relative to the scenario file, in
    which RocksDB keeps the state; or redis://HOST:PORT/DB. The password of a server is in the environment variable
    RECLOOP_ONLINE_PASSWORD. Without a store servers map the files of `materialize`, and see no later rows."""


# A scenario is committed to git, whose history keeps a secret for ever.
_SECRET = re.compile(r"secret|password|token|credential|access.?key", re.IGNORECASE)


class Spark(Section):
    """The cluster of `engine: spark`."""

    master: str | None = None
    """The URL of the master: local[2] or local[*] for this machine, spark://HOST:PORT, yarn, k8s://https://HOST:PORT.
    Without it that of spark-submit, else the environment variable RECLOOP_SPARK_MASTER, else local[2]."""
    settings: dict[str, str] = {}
    """Spark's own settings, such as spark.executor.memory: 4g. Secrets stand in Spark's file, spark-defaults.conf."""

    @field_validator("settings")
    @classmethod
    def _check_settings(cls, settings: dict[str, str]) -> dict[str, str]:
        for name in settings:
            if not name.startswith("spark."):
                raise ValueError(f"{name[:80]}: Spark's settings begin with spark.; write spark.executor.memory")
            if _SECRET.search(name):
                # The value is not repeated, here and in no later message.
                raise ValueError(f"{name[:80]}: a secret; write it into spark-defaults.conf in SPARK_CONF_DIR")
        return settings


class Scenario(Section):
    """One recommender. Each part has a section of its own."""

    name: Name
    """The scenario's name in the store, in Airflow and in MLflow."""
    description: str = ""
    """A text for the people who read the DAG's page and the model's."""
    data: Data
    """The logs, their columns and days."""
    labels: dict[Name, Label] = Field(min_length=1)
    """The tasks to predict: a name, and a condition that an event of the log fulfils or not, or an outcome in another
    log; see below."""
    outcomes: tuple[str, ...] = ()
    """The columns that are known only after the event, besides those of the labels; features must not read them."""
    ingest: Ingest = Ingest()
    """The rules for reading the day's files."""
    join: Join = Join()
    """The history that features see."""
    engine: Literal["duckdb", "spark"] = "duckdb"
    """The place where `join` computes what the windows of trailing features hold: in its own process, beside DuckDB, or
    with Spark's executors. The samples have the same bytes, so a chain can change it on any day."""
    spark: Spark = Spark()
    """The cluster of `engine: spark`."""
    features: dict[Name, AnyFeature] = Field(min_length=1)
    """The inputs of the model, by name; see below."""
    model: Model = Model()
    """The network that scores."""
    train: Train = Train()
    """The training of a day."""
    evaluate: Evaluate = Evaluate()
    """The comparison of challenger and champion."""
    # Not `validate`, which is a method of pydantic's.
    validate_: Validate = Field(Validate(), alias="validate")
    """The checks of the day's samples."""
    tune: Tune = Tune()
    """The search for better settings."""
    quantize: Quantize = Quantize()
    """The compression of the served model."""
    deploy: Deploy = Deploy()
    """The gates of a promotion."""
    schedule: Schedule = Schedule()
    """The times at which Airflow runs."""
    store: Store = Store()
    """The files that are kept."""
    online: Online | None = None
    """The online store of features; without it nothing is loaded."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the labels, in the order of the file."""
        return tuple(self.labels)

    @property
    def own_labels(self) -> dict[str, str]:
        """Labels that are conditions over the event itself."""
        return {task: label for task, label in self.labels.items() if isinstance(label, str)}

    @property
    def outcome_labels(self) -> dict[str, OutcomeLabel]:
        """Labels that another log decides."""
        return {task: label for task, label in self.labels.items() if isinstance(label, OutcomeLabel)}

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
