"""A release: a version of the model with the features of its requests, loaded together and swapped together."""

from __future__ import annotations

import datetime
import functools
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.control_records import open_regular, read_record
from feature_jobs.errors import BadInputError, CorruptError
from feature_jobs.expressions.vectors import repeated
from feature_jobs.online.opening import OnlineFeatures
from feature_jobs.online.request import Request, RequestPath
from feature_jobs.online.typed import typed
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.windows.keys import keys_of
from models.runtime.files import REFERENCE_FILE
from serving.items import ItemRows, features_of_item
from serving.protocol import Answer, Asked
from serving.scorer import Scorer

USER, ITEMS = "user", "items"
FEATURES = "features"
"""The further output of a request that asks for an explanation: of each item its features, as JSON."""
ALARM = "alarm"
"""The key of a line that hands workers an alarm instead of a release."""
_WARM_UP_ITEMS = 100
_EXAMPLE_ITEMS = 5
_NO_USER = pa.nulls(0)
_MICROS = 1_000_000

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Release:
    """Facts of a release. `ds` is the last day that the version learned, `state` the day at whose end its features
    begin; `export` and `online` are folders of this machine, `digest` is the SHA-256 of the export's serving.json.

    `settings` are sections of the scenario as the version learned them, which replace those of the file."""

    model: str
    version: str
    ds: str
    checkpoint: str
    scenario: str
    settings: dict[str, Any]
    state: str
    export: str
    digest: str
    online: str

    def to_json(self) -> bytes:
        """As one line."""
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def from_json(line: bytes) -> Release:
        """Reads such a line."""
        return read_record(line, Release, "release", "start the server again")


class Loaded:
    """A release that is loaded and proven."""

    def __init__(self, release: Release) -> None:
        """Loads a release, scores its reference rows, and answers a first request.

        Raises CorruptError where a file has another digest, or a score is another one than that of the export;
        BadInputError where the features are not those of the version.
        """
        self.facts = release
        self.scenario: Scenario = load_scenario(release.scenario, overrides=release.settings)
        self.scorer = Scorer.load(release.export, release.digest)
        if unknown := sorted(set(self.scorer.columns) - self.scenario.features.keys()):
            raise BadInputError(
                f"{release.scenario}: version {release.version} reads the feature {unknown[0]}, which the scenario has"
                f" no more; declare it again, or promote a version without it"
            )
        columns = set(self.scorer.columns)
        self._features = OnlineFeatures(self.scenario, Path(release.online), names=columns)
        self._path, self._items = self._features.path, None
        of_item = columns & features_of_item(self.scenario, self._path)
        if ItemRows.are_worth(self._features, self.scorer.model, of_item):
            self._items = ItemRows(self._features, self.scorer.model, of_item)
            self._path = RequestPath(self.scenario, self._path.facts, columns - of_item)
        self._prove(Path(release.export) / REFERENCE_FILE)
        self._warm_up()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that it scores."""
        return self.scorer.tasks

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """Its features, with the types of their columns."""
        return self.scorer.types

    @property
    def begin(self) -> datetime.datetime:
        """The first time of requests whose features are known."""
        return datetime.datetime.fromtimestamp(self._features.path.facts.begin / _MICROS, datetime.UTC)

    @property
    def example(self) -> tuple[int | str | None, list[int | str]]:
        """A user and some items of the state, for a first try."""
        data = self.scenario.data
        return self.ids(data.user)[0].as_py(), self.ids(data.item)[:_EXAMPLE_ITEMS].drop_null().to_pylist()

    def ids(self, column: str) -> pa.Array:
        """The ids of users or of items that the state has rows of; null alone where it has none."""
        held = self._features.path.facts.entities
        for name in self.scenario.data.entities_by(column):
            if name in held and len(held[name]):
                return held[name].rows[column].combine_chunks()
        return pa.nulls(1)

    @property
    def context(self) -> list[str]:
        """Further columns of the log, which come with a request."""
        data = self.scenario.data
        return [name for name in data.events.columns if name not in (data.user, data.item)]

    def score_rows(self, rows: pa.Table) -> dict[str, Floats]:
        """Scores of rows of features by name; a feature without a column is null."""
        return self.scorer.score(rows, fill_missing=True)

    def close(self) -> None:
        """Lets go of the online store."""
        self._features.close()

    def answer(self, asked: Asked, now: int) -> Answer:
        """Scores of a request, in the order of its items. `now` is the time in µs.

        With `items` the features come from the state; else the inputs are the features themselves, by name. Raises
        BadInputError with the field that is wrong.
        """
        begun, num_unknown = time.perf_counter(), dict[str, int]()
        explain, fill = bool(asked.parameters.get("explain")), None
        scores: dict[str, Any]
        if ITEMS in asked.inputs:
            at, num = _time(asked.parameters.get("time"), now), len(asked.inputs[ITEMS])
            if self._items is not None and not explain:
                fill = functools.partial(self._items.fill, asked.inputs[ITEMS], self._served(at))
            columns = self._columns(self._path if fill else self._features.path, asked, at)
            ready, parameters = time.perf_counter(), self._said_of(at)
            scores = self.scorer.score_request(columns, num, fill)
            num_unknown = {name: self._num_unknown(name, asked.inputs.get(name)) for name in (USER, ITEMS)}
        elif asked.inputs.keys() & set(self.columns):
            columns, parameters, ready = _of_one_length(asked.inputs), {}, begun
            scores = self.scorer.score(pa.table(dict(columns)))
            num = len(next(iter(columns.values())))
        else:
            names = ", ".join(self.columns)
            raise BadInputError(f"inputs: no {ITEMS}; give {USER} and {ITEMS}, or the features by name ({names})")
        seconds = {"features": ready - begun, "score": time.perf_counter() - ready}
        if explain:
            scores[FEATURES] = _explained(columns, num)
        if unknown := sorted(asked.outputs.keys() - scores.keys()):
            raise BadInputError(f"outputs: {unknown[0]!r} is none of {', '.join(scores)}; leave it out")
        wanted = {name: scores[name] for name in asked.outputs} if asked.outputs else scores
        return Answer(self.facts.model, self.facts.version, wanted, parameters, seconds, num_unknown)

    def _num_unknown(self, input_: str, ids: pa.Array | None) -> int:
        """The number of ids of an input that no row of their entity has; 0 where they are not those of an entity."""
        data = self.scenario.data
        column = data.user if input_ == USER else data.item
        for name in data.entities_by(column):
            rows = self._features.path.entities.get(name)
            if ids is not None and rows is not None:
                keys, known = keys_of([typed(self.scenario, column, ids.drop_null())])
                return int(np.count_nonzero(rows.find(keys, known) < 0))
        return 0

    def features_of(self, asked: Asked, at: int) -> Mapping[str, pa.Array]:
        """The features of a request by ids at a time in µs: of each a value for each item, or one for all."""
        return self._columns(self._features.path, asked, at)

    def _columns(self, path: RequestPath, asked: Asked, at: int) -> Mapping[str, pa.Array]:
        user = asked.inputs.get(USER, _NO_USER)
        if len(user) > 1:
            raise BadInputError(f"{USER}: {len(user)} values; give one user a request, of the shape [1]")
        context = {name: column for name, column in asked.inputs.items() if name not in (USER, ITEMS)}
        user_id = user[0].as_py() if len(user) else None
        request = Request(self._served(at), user_id, asked.inputs[ITEMS], context)
        return path.columns(request, self._features.reading)

    def _served(self, at: int) -> int:
        """The time of the state that is next to a time: an old state is better than no answer."""
        facts = self._features.path.facts
        return min(max(at, facts.begin), facts.end - 1)

    def _said_of(self, at: int) -> dict[str, str]:
        """The parameters of an answer about its features."""
        served = self._served(at)
        return {"state": self.facts.state, **({} if served == at else {"features_at": _text(served)})}

    def _prove(self, file: Path) -> None:
        """Compares the scores of the reference rows with those of the export, to the last bit."""
        with open_regular(file, "fetch the export again") as stream:
            rows = pq.read_table(stream)
        for task, found_N in self.scorer.score(rows).items():
            wanted_N = rows[f"int8.{task}"].to_numpy()
            if not np.array_equal(found_N, wanted_N):
                row = int(np.argmax(found_N != wanted_N))
                raise CorruptError(
                    f"{file}: row {row} has the score {found_N[row]!r} of {task} here, and {wanted_N[row]!r} in the"
                    " export; use the releases of numba and ONNX Runtime in the lock, or export it again"
                )

    def _warm_up(self) -> None:
        """Computes a first request, so that no client waits for what it compiles and maps."""
        data = self.scenario.data
        context = {name: pa.nulls(1) for name in self.context}
        inputs = {USER: self.ids(data.user)[:1], ITEMS: self.ids(data.item)[:_WARM_UP_ITEMS], **context}
        self.answer(Asked(inputs, {}), self._features.path.facts.begin)


def _time(given: object, now: int) -> int:
    if given is None:
        return now
    try:
        found = datetime.datetime.fromisoformat(str(given))
    except ValueError:
        raise BadInputError(f"parameters.time: {repr(given)[:40]} is not a time; give 2024-03-06T10:00:00Z") from None
    if found.tzinfo is None:
        raise BadInputError(f"parameters.time: {given!r} has no zone; give 2024-03-06T10:00:00Z")
    return round(found.timestamp() * _MICROS)


def _text(time: int) -> str:
    return datetime.datetime.fromtimestamp(time / _MICROS, datetime.UTC).isoformat()


def _explained(columns: Mapping[str, pa.Array], num_items: int) -> pa.Array:
    """The features of each item as JSON."""
    rows = pa.table({name: repeated(column, num_items) for name, column in columns.items()}).to_pylist()
    return pa.array([orjson.dumps(row, default=str).decode() for row in rows], pa.string())


def _of_one_length(inputs: Mapping[str, pa.Array]) -> Mapping[str, pa.Array]:
    lengths = {name: len(column) for name, column in inputs.items()}
    if len(set(lengths.values())) > 1:
        raise BadInputError(
            f"inputs: {', '.join(f'{name} has {num}' for name, num in lengths.items())} values; give items, or each"
            " feature for as many rows"
        )
    return inputs
