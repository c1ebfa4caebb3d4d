"""Ports a pipeline config of EasyRec or TorchEasyRec (protobuf text), or an fg.json, to a scenario.

protobuf_text    reads the file
easyrec_config   which of its settings were used; the others are listed with a reason
easyrec_tables   what their names mean here: a new type, option or model is a line there
easyrec_columns  the columns that features read
easyrec_features feature configs; easyrec_expressions and easyrec_transforms: what they compute
this module      labels, model, training, and all of it in the order of the scenario
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import columns_of
from feature_jobs.proposals import easyrec_tables as tables
from feature_jobs.proposals import vocabulary
from feature_jobs.proposals.easyrec_columns import Columns, ConfigColumns, Declared, FoundColumns
from feature_jobs.proposals.easyrec_config import NUMBER, TEXT, WHOLE, Lost, Part, grouped, shown
from feature_jobs.proposals.easyrec_features import FeatureReader, declarations, fits
from feature_jobs.proposals.labels import Answers
from feature_jobs.proposals.propose import write_proposal
from feature_jobs.proposals.protobuf_text import MAX_BYTES, Setting, parse_protobuf_text
from feature_jobs.proposals.roles import FoundEntity, Log
from feature_jobs.proposals.vocabulary import clean, unique
from feature_jobs.schema import Model, Train
from feature_jobs.schema.user_file import read_user_text

MAX_FEATURES = 3_000  # a scenario has at most 300,000 characters
_SECTIONS = {
    "data": ("data_config", "train_input_path"),
    "features": ("feature_config", "feature_configs", "features"),
    "model": ("model_config",),
    "train": ("train_config",),
}
Section = dict[str, object]


def write_port(file: Path, out: Path, name: str | None, data: Path | None, labels: Mapping[str, str]) -> list[str]:
    """Writes NAME.yaml and NAME.expectations.json into `out`; returns lines for a person, with all that was lost.

    `data`: the folder of the log, from which times, users, items, types and days are then proposed as `recloop init`
    does. Raises BadInputError where the file is not such a config, or has no feature that can be carried over.
    """
    port = Port(file, labels)
    return write_proposal(data, out, name or clean(file.name.split(".")[0]).lower(), port.labels, port)


@dataclass(frozen=True)
class Task:
    """A label of the config: its name in the scenario, its column, its condition and the weight of its loss."""

    name: str
    column: str
    condition: str
    weight: float | None


class Port:
    """A config on its way into a scenario."""

    def __init__(self, file: Path, given: Mapping[str, str]) -> None:
        try:
            text = read_user_text(file, MAX_BYTES)
        except FileNotFoundError:
            raise BadInputError(f"{file}: no such file; name a pipeline config or an fg.json") from None
        self.file = file
        self.config = Part(parse_protobuf_text(text, str(file)))
        # One more than allowed is enough to know, however many a file declares.
        self.declarations = list(islice(declarations(self.config), MAX_FEATURES + 1))
        if not 0 < len(self.declarations) <= MAX_FEATURES:
            what = f"has over {MAX_FEATURES:,} features" if self.declarations else "declares no features"
            remedy = "name a pipeline config of EasyRec or an fg.json"
            if found := self.config.values("fg_json_path"):
                remedy = f"they are in {shown(found[-1])}; name that file, and copy model and training from this one"
            raise BadInputError(f"{file}: {what}; {remedy}")
        fields = self.config.parts("data_config.input_fields")
        self.declared = {str(one.value): _type_of(part) for part in fields for one in part.at("input_name")[-1:]}
        for pair in (one for text in self.config.values("data_config.input_fields_str") for one in text.split(";")):
            field, _, said = pair.strip().partition(":")
            self.declared |= {field: _column_type(said)} if field else {}
        self.tasks = [] if given else _tasks(self.config, self.declared)
        learned = {task.column for task in self.tasks}
        said = [] if given else self.config.values("data_config.label_fields")
        self.others = [name for name in said if name not in learned] if self.tasks else []
        is_said = given or said or learned - {"label"}
        self.why_labels = "" if is_said else "CHOOSE: the config names no label"
        self.labels: Mapping[str, str] = dict(given) or {task.name: task.condition for task in self.tasks}

    def choices(self, log: Log | None, entities: list[FoundEntity], answers: Answers | None) -> Section:
        """The values of the template `ported.yaml.j2`; without a log, data is described as the config does it."""
        outcomes = set(answers.outcomes) if answers else set()
        for condition in self.labels.values():
            outcomes |= columns_of(condition)
        outcomes |= {task.column for task in self.tasks} | set(self.others)
        columns: Columns
        if log is None:
            columns = ConfigColumns(self.declared, outcomes)
            self._declare_labels(columns)
        else:
            columns = FoundColumns(log, entities, outcomes)
        reader = self._read_features(columns)
        model, train, dim = _model(self.config), _train(self.config, self.tasks), self._embedding_dim(reader)
        model |= {"embedding_dim": dim} if dim else {}
        found: Section = {"file": shown(self.file.name)[1:-1], "model": model, "train": train}
        if isinstance(columns, ConfigColumns):
            found |= self._data(columns, reader)
        elif log and answers:
            late = [name for name, one in log.table.columns.items() if one.source in self.others]
            found["outcomes"] = {**dict.fromkeys(late, _NOT_LEARNED), **answers.outcomes}
        found |= {"features": reader.with_reasons(), "lost": self._lost(reader, log), "why_labels": self.why_labels}
        num = sum(one.fields is not None for one in reader.features)
        return found | {"num_carried": f"{num} of {len(reader.features)}"}

    def _read_features(self, columns: Columns) -> FeatureReader:
        groups = [*self.config.at("model_config.feature_groups"), *self.config.at("model_config.seq_att_groups")]
        leaves = [one for _, one in Part(tuple(groups)).leaves() if isinstance(one.value, str)]
        modern = self.config.parts("feature_configs.*") or self.config.parts("features")
        separators = [*self.config.values("data_config.fg_encoded_multival_sep"), *self.config.values("multi_val_sep")]
        # Their defaults: TorchEasyRec and fg.json separate by the character 0x1d, EasyRec by |.
        separator = next((one for one in separators if one), "\x1d" if modern else "|")
        members = frozenset(str(one.value) for one in leaves if one.name in _MEMBERS)
        reader = FeatureReader(columns, separator, members)
        for declared in self.declarations:
            reader.read(declared)
        carried = [one.fields for one in reader.features if one.fields]
        if not carried:
            raise BadInputError("\n".join([f"{self.file}: no feature can be carried over", *grouped(reader.lost)]))
        # Where the groups name none of them, none would be left: a model needs an input.
        if all(fields.get("enabled") is False for fields in carried):
            for fields in carried:
                del fields["enabled"]
        self.config.taken.update(one for one in leaves if one.value in reader.known and one.name in _MEMBERS)
        return reader

    def _embedding_dim(self, reader: FeatureReader) -> int | None:
        """The dimension that most features have; the others' are lost."""
        names = ("embedding_dim", "embedding_dimension")
        found = [one for d in self.declarations for name in names for one in d.part.at(name)[-1:]]
        found = [one for one in found if type(one.value) is int and fits(Model, "embedding_dim", one.value)]
        found = [one for one in found if one not in self.config.taken]
        counts = Counter(one.value for one in found)
        # Of equally frequent ones the larger: the order of the file must not decide.
        dim = max(counts, key=lambda value: (counts[value], value), default=None)
        self.config.taken.update(one for one in found if one.value == dim)
        return dim if isinstance(dim, int) else None

    def _lost(self, reader: FeatureReader, log: Log | None) -> dict[str, list[str]]:
        """Lines for each section of the scenario, and for what belongs to none."""
        lost = sorted([*self.config.lost(), *reader.lost], key=lambda one: one.line)
        homes = {name: section for section, names in _SECTIONS.items() for name in names}
        by_section: dict[str, list[Lost]] = {section: [] for section in (*_SECTIONS, "others")}
        for one in lost:
            why = f"the files say it; {tables.NOTHING}" if log and re.fullmatch(tables.IN_FILES, one.path) else one.why
            by_section[homes.get(one.path.split(".")[0], "others")].append(replace(one, why=why))
        return {section: grouped(ones) for section, ones in by_section.items()}

    def _data(self, columns: ConfigColumns, reader: FeatureReader) -> Section:
        """The data section as the config describes it, with defaults where only the user knows."""
        config, read = (
            self.config,
            {name for one in reader.features if one.fields for name in _reads(one.name, one.fields)},
        )
        user, why_user = self._key(columns, read, vocabulary.USER, "user_id")
        item, why_item = self._key(columns, read - {user.name}, vocabulary.ITEM, "item_id")
        time, why_time = self._time(columns, read)
        labels = {column for condition in self.labels.values() for column in columns_of(condition)}
        others = [one.name for one in columns.columns.values() if one.source in self.others]
        required = {user.name, item.name, time.name} | labels
        kept = [one for one in columns.columns.values() if one.name in required | read | set(others)]
        for part in config.parts("data_config.input_fields"):
            if any(one.value == column.source for one in part.at("input_name")[-1:] for column in kept):
                part.taken.update(part.at("input_name")[-1:] + part.at("input_type")[-1:])
        said = config.at("data_config.input_type")[-1:] + config.at("data_config.dataset_type")[-1:]
        file_format = next((tables.FORMATS[str(one.value)] for one in said if one.value in tables.FORMATS), "")
        config.taken.update(one for one in said if one.value in tables.FORMATS)
        source = config.value("train_input_path") or ""
        is_csv = file_format == "csv"
        delimiter = _delimiter(config) if is_csv else ""
        header = config.value("data_config.with_header", (bool,), bool) if is_csv else True
        data = {
            "source": shown(source, 200) if source else "",
            "format": file_format or "parquet",
            "delimiter": delimiter,
            "no_header": ", ".join(shown(name)[1:-1] for name in self.declared) if not header else "",
            "columns": [(one.name, one.fields(required=one.name in required)) for one in kept],
            "time": ({"column": time.name, "unit": "iso" if time.type == "string" else "s", "zone": "UTC"}, why_time),
            "user": (user.name, why_user),
            "item": (item.name, why_item),
        }
        return {"data": data, "outcomes": dict.fromkeys(others, _NOT_LEARNED)}

    def _declare_labels(self, columns: ConfigColumns) -> None:
        """First, so that they have their names."""
        labels = [task.column for task in self.tasks] or [
            one for text in self.labels.values() for one in columns_of(text)
        ]
        for source in dict.fromkeys([*labels, *self.others]):
            kind = self.declared.get(source, "")
            columns.declare(source, kind if kind in ("float", "string", "bool") else "int")

    def _key(self, columns: ConfigColumns, read: set[str], words: str, usual: str) -> tuple[Declared, str]:
        """The user or the item by the names of the columns of ids, the likeliest word first; else one to rename."""
        ids = [one for one in columns.columns.values() if one.type in ("int", "string") and one.name in read]
        ids.sort(key=lambda one: vocabulary.words_of(one.name).isdisjoint(vocabulary.ID_ENDINGS))
        for word in words.split():
            for one in ids:
                if word in vocabulary.words_of(one.name):
                    return one, "by its name; check it"
        return columns.declare(usual, "string", name=usual), "CHOOSE: no column has such a name; name yours"

    def _time(self, columns: ConfigColumns, read: set[str]) -> tuple[Declared, str]:
        sources = {column.source for column in columns.columns.values() if column.name in read}
        names = [*self.declared, *self.config.values("reserves")]
        for name in names:
            if name not in sources | set(columns.outcomes) and vocabulary.words_of(name) & vocabulary.TIME:
                kind = "string" if self.declared.get(name) == "string" else "int"
                return columns.declare(name, kind), "by its name; check column and unit"
        return columns.declare("event_time", "int", name="event_time"), "CHOOSE: the column with the time of the event"


_NOT_LEARNED = "a label of the config that no tower learns"
_MEMBERS = ("feature_names", "hist_seq", "aux_hist_seq", "key")


def _reads(name: str, fields: Mapping[str, Any]) -> set[str]:
    of = fields.get("of", name)
    return {column for text in ([of] if isinstance(of, str) else of) for column in columns_of(text)}


def _type_of(part: Part) -> str:
    return "".join(_column_type(str(one.value)) for one in part.at("input_type")[-1:])


def _column_type(said: str) -> str:
    """Our name of a type of theirs, or theirs where we have none."""
    return tables.TYPES.get(said.strip().lower(), said.strip().lower())


def _delimiter(config: Part) -> str:
    written = [
        config.value(f"data_config.{key}", TEXT, lambda text: len(text) == 1) for key in ("separator", "delimiter")
    ]
    return next((text for text in written if text), ",")


def _tasks(config: Part, declared: Mapping[str, str]) -> list[Task]:
    """The towers' labels, or the label fields, or, without any, the columns of fg.json that are named as behaviours."""
    fields = [str(one.value) for one in config.at("data_config.label_fields")]
    towers = config.parts("model_config.*.task_towers") + config.parts("model_config.*.*.task_configs")
    pairs: list[tuple[str, str, float | None]] = []
    for place, tower in enumerate(towers):
        column = tower.value("label_name") or (fields[place] if place < len(fields) else "")
        name = tower.value("tower_name") or tower.value("task_name") or column
        if column:
            weight = tower.value("weight", NUMBER, lambda value: fits(Train, "task_weights", {"a": value}))
            pairs.append((name, column, weight))
    if not pairs:
        only = config.value("model_config.label_name", TEXT, fields.__contains__)
        pairs = [(name, name, None) for name in ([only] if only else fields)]
    if not pairs:
        kept = [text.strip() for one in config.values("reserves") for text in one.split(",")]
        behaviours = [name for name in kept if vocabulary.words_of(name) & vocabulary.ACTIONS]
        pairs = [(name, name, None) for name in behaviours or ["label"]]
    tasks: dict[str, Task] = {}
    for name, source, weight in pairs:
        column, kind = clean(source), declared.get(source, "int")
        condition = {"string": f"{column} == '1'", "bool": column}.get(kind, f"{column} == 1")
        text = clean(name).lower()[:90]
        free = unique(text if text[0].isalpha() else f"l_{text}", tasks)
        tasks[free] = Task(free, source, condition, weight)
    return list(tasks.values())


def _model(config: Part) -> Section:
    """The settings of `model`, with a comment for the architecture."""
    named: list[tuple[Setting | None, str]] = []
    for part in config.parts("model_config")[-1:]:
        said = [one for key in ("model_class", "model_name") for one in part.at(key)[-1:]]
        inner = [one for one in part.settings if isinstance(one.value, tuple)]
        named += [(one, str(one.value)) for one in said] + [(one, one.name) for one in inner]
    known = [(one, name) for one, text in named if (name := text.lower().replace("_", "")) in tables.ARCHITECTURES]
    if not known:
        return {"architecture": "shared_bottom", "why": "the config names no model that Recloop knows" if named else ""}
    config.taken.update(one for one, name in known if name == known[0][1] and one is not None)
    architecture, why = tables.ARCHITECTURES[known[0][1]]
    made: Section = {}
    below = next(
        (
            part
            for part in config.parts("model_config.*")
            if part.path.split(".")[1].lower().replace("_", "") == known[0][1]
        ),
        None,
    )
    for part in [below] if below else config.parts("model_config.model_params"):
        for key, paths in tables.LAYERS.items():
            for path in paths.split():
                if key not in made and (widths := _widths(part.parts(path), key)):
                    made[key] = widths
                    architecture = "mmoe" if path.startswith("expert") else architecture
        for path, key in tables.MODEL:
            value = part.value(path, WHOLE, _fitting(Model, key)) if key not in made else None
            made |= {} if value is None else {key: value}
        dropouts = [one for found in part.parts("*") for one in found.at("dropout_ratio")]
        dropout = dropouts[0].value if dropouts else None
        if dropout is not None and fits(Model, "dropout", dropout):
            config.taken.update(one for one in dropouts if one.value == dropout)
            made["dropout"] = dropout
    return {"architecture": architecture, "why": f"for {shown(known[0][1])[1:-1]}{': ' if why else ''}{why}"} | made


def _widths(parts: list[Part], key: str) -> list[int]:
    """The layers of the first of these messages; those of others are taken where they are equal."""
    layers = [[one for one in part.at("hidden_units") if type(one.value) is int] for part in parts]
    values = [[one.value for one in found] for found in layers]
    if not values or not values[0] or not fits(Model, key, values[0]):
        return []
    for part, found, equal in zip(parts, layers, values, strict=True):
        part.taken.update(found if equal == values[0] else ())
    return [value for value in values[0] if isinstance(value, int)]


def _train(config: Part, tasks: Iterable[Task]) -> Section:
    made: Section = {}
    for path, key in tables.TRAIN:
        value = config.value(path, NUMBER, _fitting(Train, key)) if key not in made else None
        made |= {} if value is None else {key: value}
    for name, optimizer in tables.SPARSE_OPTIMIZERS.items():
        if found := config.at(f"train_config.sparse_optimizer.{name}"):
            made["embedding_optimizer"] = optimizer
            config.taken.update(found)
    precision = config.value("train_config.mixed_precision", TEXT, tables.PRECISIONS.__contains__)
    made |= {"precision": tables.PRECISIONS[precision]} if precision else {}
    weights = {task.name: task.weight for task in tasks if task.weight not in (None, 1)}
    return made | ({"task_weights": weights} if weights else {})


def _fitting(section: Any, key: str) -> Callable[[Any], bool]:
    return lambda value: fits(section, key, value)
