"""Turns feature configs of EasyRec, TorchEasyRec and fg.json into features of a scenario."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pydantic import ValidationError

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.types import type_of
from feature_jobs.proposals import easyrec_tables as tables
from feature_jobs.proposals.easyrec_columns import Columns, MissingError, Shape
from feature_jobs.proposals.easyrec_config import TEXT, WHOLE, Lost, Part, shown
from feature_jobs.proposals.easyrec_expressions import ours
from feature_jobs.proposals.easyrec_transforms import TRANSFORMS, transformed
from feature_jobs.proposals.features import Fields, Proposed
from feature_jobs.proposals.protobuf_text import Setting
from feature_jobs.proposals.vocabulary import clean, unique
from feature_jobs.schema import Embedding, VectorFeature

MAX_BOUNDARIES = 100
POOLINGS = ("mean", "sum")
# A config does not say which variables of an expression are vectors; the functions around them do.
_OF_VECTORS = re.compile(r"\b(?:dot|euclid_dist|reduce_\w+)\(([^()]*)\)")
_SIDE = re.compile(r"(user|item|context|const|feature):(.*)", re.DOTALL)
# Python raises the last two at expressions with too many parts inside one another.
_NOT_FITTING = (BadInputError, MissingError, SyntaxError, ValueError, RecursionError, MemoryError)


@dataclass(frozen=True)
class Declaration:
    """A feature as a config declares it. `sequence` is the message around a feature of a grouped sequence."""

    type: str
    part: Part
    sequence: Part | None = None
    pooling: str = "mean"
    """The pooling of several ids, where the config says none."""


def declarations(config: Part) -> Iterator[Declaration]:
    """All features, in the order of the file."""
    for part in (*config.parts("feature_configs"), *config.parts("feature_config.features"), *config.parts("features")):
        yield from _declared(part)


def _declared(part: Part, sequence: Part | None = None) -> Iterator[Declaration]:
    wrapped = [one for one in part.settings if isinstance(one.value, tuple) and re.search(r"_feature$|^kv_", one.name)]
    if wrapped:  # TorchEasyRec: id_feature { feature_name: ... }
        for one in part.parts(wrapped[-1].name):
            inner = one.parts("features")
            for below in inner:
                yield from _declared(below, one)
            if not inner:
                yield Declaration(wrapped[-1].name, one, sequence, "sum")
    elif part.at("sequence_name") and part.at("features"):
        for below in part.parts("features"):
            yield from _declared(below, part)
    elif any(part.at(name) for name in ("feature_type", "feature_name", "input_names", "expression")):
        named = part.value("feature_type") or "IdFeature"
        yield Declaration(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", named).lower(), part, sequence)


@dataclass
class FeatureReader:
    """Reads declarations one after the other. `members`: the names in the model's feature groups; empty: all."""

    columns: Columns
    separator: str
    members: frozenset[str] = frozenset()
    features: list[Proposed] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    """All the names by which groups may call a feature that was carried over."""
    origins: dict[str, Part | None] = field(default_factory=dict)
    """The message of each feature that was carried over; None for one that shares another's settings."""
    holders: dict[str, tuple[str, str]] = field(default_factory=dict)
    """The feature that holds each named table, and the type of its ids."""

    def read(self, declared: Declaration) -> None:
        """Adds the feature, or what was lost."""
        part, name = declared.part, _name_of(declared)
        try:
            made = self._made(declared)
            self._check(made)
        except _NOT_FITTING as error:
            # On one line, because it becomes a comment of the YAML file.
            self._leave_out(declared, name, " ".join(str(error).split()))
            return
        named, inputs = part.values("feature_name"), part.values("input_names")
        around = declared.sequence.values("sequence_name") if declared.sequence else []
        aliases = {name, *(named or inputs[:1]), *around}
        self.known |= aliases
        added = self._add(name, made, part)
        if part.value("stub_type", (bool,)) or (self.members and not self.members & aliases):
            made["enabled"] = False
        if made["kind"] in ("id", "ids"):
            self._add_shared(added, made, part)

    def with_reasons(self) -> list[Proposed]:
        """The features, each with what was not carried over of it."""
        return [replace(one, why=self._why(one)) if one.fields else one for one in self.features]

    def _why(self, feature: Proposed) -> str:
        origin = self.origins[feature.name]
        if origin is None:
            return "one of shared_names"
        lost = [f"{one.name} {one.value}" for one in origin.lost() if not one.why.endswith(tables.NOTHING)]
        parts = ["the config's model does not read it"] if (feature.fields or {}).get("enabled") is False else []
        return "; ".join([*parts, *([f"not carried over: {', '.join(lost)}"] if lost else [])])

    def _add_shared(self, holder: str, made: Fields, part: Part) -> None:
        """The other columns that EasyRec reads like this one, with the same table."""
        element = self._element(holder, made)
        for setting in part.at("shared_names"):
            part.taken.add(setting)
            try:
                of = self._column(str(setting.value), "list" if made["kind"] == "ids" else "id", part)
                same = {"kind": made["kind"], "of": of, "table": made.get("table", holder)}
                self._check(same)
                if self._element(holder, same) != element:
                    raise MissingError("its ids are of another type; declare it by hand")
            except _NOT_FITTING as error:
                self.lost.append(Lost(f"{part.path}.shared_names", shown(setting.value), setting.line, str(error)))
            else:
                self.known.add(str(setting.value))
                self._add(str(setting.value), same, None)

    def _add(self, name: str, made: Fields, part: Part | None) -> str:
        taken = {feature.name for feature in self.features}
        free = clean(name).lower()[:90]  # of 100: `unique` may add a number
        free = unique(free if free[0].isalpha() else f"f_{free}", taken)
        # It is the default then, and a file is easier to read without it.
        if made.get("of") == free:
            del made["of"]
        if part is not None and made["kind"] in ("id", "ids", "cross"):
            self._share(free, made, part)
        self.features.append(Proposed(free, made))
        self.origins[free] = part
        return free

    def _share(self, name: str, made: Fields, part: Part) -> None:
        """Shares the table of the first feature with this `embedding_name`, or keeps limits of its own."""
        named, element = part.value("embedding_name") if made["kind"] != "cross" else None, self._element(name, made)
        if named and (holder := self.holders.get(named)):
            if holder[1] == element:
                made["table"] = holder[0]
                return
        elif named:
            self.holders[named] = name, element
        limits: Fields = {}
        for path, key in tables.EMBEDDING:
            value = None if key in limits else part.value(path, WHOLE, partial(fits, Embedding, key))
            limits |= {} if value is None else {key: value}
        made |= {"embedding": limits} if limits else {}

    def _element(self, name: str, made: Fields) -> str:
        of = str(made.get("of", name))
        kind = "string" if made["kind"] == "cross" else type_of(of, self.columns.types.__getitem__)
        return {"list[int]": "int", "list[string]": "string", "bool": "int"}.get(kind, kind)

    def _made(self, declared: Declaration) -> Fields:
        part, kind = declared.part, tables.KINDS.get(declared.type)
        if declared.type in TRANSFORMS and declared.sequence is None:
            return self._transformed(declared.type, part)
        if kind is None:
            raise MissingError(tables.TYPES_LEFT_OUT.get(declared.type, f"{declared.type} is {tables.UNKNOWN}"))
        weights = [one for key in ("weighted", "needWeighting", "kv_separator") for one in part.at(key)]
        weights = [one for one in weights if one.value is not False]
        if weights and kind not in ("id", "ids"):
            raise MissingError("its values have weights; write two columns")
        if part.at("seq_multi_sep"):
            raise MissingError("is a list of lists; write a list of single values")
        if declared.type == "sequence_feature" and part.value("sub_feature_type") not in (None, "IdFeature"):
            raise MissingError(tables.TYPES_LEFT_OUT["sequence_raw_feature"])
        sizes = (*part.at("value_dim"), *part.at("value_dimension"), *part.at("raw_input_dim"))
        if kind == "number" and any(one.value not in (0, 1) for one in sizes):
            return self._vector(_sources(declared), sizes, part)
        if declared.sequence is not None and kind not in ("id", "ids"):
            raise MissingError(tables.TYPES_LEFT_OUT["sequence_raw_feature"])
        if declared.type == "expr_feature":
            return self._stepped(self._expression_of(part), part)
        sources = _sources(declared)
        if (kind == "cross") != (len(sources) > 1):
            raise MissingError(f"reads {len(sources)} columns, which its kind does not; {tables.IN_LOG}")
        if kind == "number":
            return self._stepped(self._normalized(self._column(sources[0], "number", part), part), part)
        if kind == "cross":
            return {"kind": "cross", "of": [self._column(one, "id", part) for one in sources]}
        return (
            self._weighted(declared, sources[0], weights) if weights else self._ids(declared, kind, sources[0], sizes)
        )

    def _ids(self, declared: Declaration, kind: str, source: str, sizes: tuple[Setting, ...]) -> Fields:
        """One id, or several of a cell."""
        part = declared.part
        # `value_dim: 0`, a separator or an average say that a cell holds several ids.
        said = part.at("separator") or part.at("pooling") or part.value("is_multi", (bool,), bool)
        several = said or any(one.value != 1 for one in sizes) or kind == "ids" or declared.sequence is not None
        part.taken.update(sizes)
        of = self._column(source, "list" if several else "id", part, declared.sequence)
        if not self.columns.types[of].startswith("list"):
            return {"kind": "id", "of": of}
        return {"kind": "ids", "of": of} | self._pooling(declared)

    def _pooling(self, declared: Declaration) -> Fields:
        """The pooling of several ids; a sequence is averaged, in place of the attention that it gets elsewhere."""
        if declared.sequence is not None or declared.type.startswith("sequence"):
            return {}
        said = [declared.part.value(key, TEXT, POOLINGS.__contains__) for key in ("pooling", "combiner")]
        pooling = next((one for one in said if one), declared.pooling)
        return {"pooling": "sum"} if pooling == "sum" else {}

    def _transformed(self, said: str, part: Part) -> Fields:
        """A feature that computes texts, maps or lists."""
        fixed = "|" if said == "match_feature" else ""  # between the entries of its map
        kind, of = transformed(said, part, lambda source, shape: self._column(source, shape, part, separator=fixed))
        return self._stepped(of, part) if kind == "number" else {"kind": kind, "of": of}

    def _weighted(self, declared: Declaration, source: str, weights: list[Setting]) -> Fields:
        """Ids with weights, in entries id:weight."""
        if declared.sequence is not None or any(one.value not in (True, False, ":") for one in weights):
            raise MissingError("its ids have weights; write them as entries id:weight of one list")
        declared.part.taken.update(weights)
        of = self._column(source, "list", declared.part)
        if self.columns.types[of] != "list[string]":
            raise MissingError("its ids have weights; declare the column as list[string], with entries id:weight")
        return {"kind": "ids", "of": of, "weighted": True} | self._pooling(declared)

    def _vector(self, sources: list[str], sizes: tuple[Setting, ...], part: Part) -> Fields:
        width = sizes[-1].value
        if len(sources) != 1 or not fits(VectorFeature, "width", width, kind="vector"):
            raise MissingError(f"is a vector of {width} values; declare a column of type list[float] by hand")
        part.taken.update(one for one in sizes if one.value == width)
        return {"kind": "vector", "of": self._column(sources[0], "vector", part), "width": width}

    def _column(
        self, source: str, shape: Shape, part: Part, sequence: Part | None = None, separator: str | None = None
    ) -> str:
        """`separator` is given by features that compute texts and lists: type and buckets are those of their result."""
        side = _SIDE.fullmatch(source)
        if side and side[1] in ("feature", "const"):
            raise MissingError(f"reads {source}, not a column; write the column or the expression that it stands for")
        said = str(part.value("fg_value_type") or part.value("value_type") or "").lower()
        hint = tables.TYPES.get(said) or ("int" if part.at("num_buckets") else "")
        parts = (sequence, part) if sequence else (part,)
        written = [one.value(key) for one in parts for key in ("sequence_delim", "separator")]
        by = separator or next((text for text in written if text), self.separator)
        return self.columns.find(side[2] if side else source, shape, hint if separator is None else "", by)

    def _expression_of(self, part: Part) -> str:
        names = [*part.values("variables"), *part.values("input_names")]
        text = part.value("expression") or ""
        vectors = {name for found in _OF_VECTORS.finditer(text) for name in re.findall(r"\w+", found[1])}
        columns = {}
        for name in names:
            plain = name.rpartition(":")[2]
            columns[plain] = self._column(name, "vector" if plain in vectors else "number", part)
        return self._expression(text, columns)

    def _stepped(self, of: str, part: Part) -> Fields:
        """A number, or its step between boundaries, as an id."""
        # The config scales an expression itself; the default, a logarithm, would do so a second time.
        scale: Fields = {} if of in self.columns.types else {"scale": "none"}
        kind = type_of(of, self.columns.types.__getitem__)
        boundaries = sorted({one.value for one in part.at("boundaries") if _is_finite(one.value)})
        if not 0 < len(boundaries) <= MAX_BOUNDARIES or kind == "bool":
            return {"kind": "number", "of": of} | scale
        part.taken.update(one for one in part.at("boundaries") if one.value in boundaries)
        return {"kind": "id", "of": f"bucketize({of}, {boundaries})"}

    def _normalized(self, column: str, part: Part) -> str:
        function = part.value("normalizer_fn", TEXT, tables.NORMALIZER_FUNCTIONS.__contains__)
        if function:
            return tables.NORMALIZER_FUNCTIONS[function].format(x=column)
        low, high = (part.at(key)[-1:] for key in ("min_val", "max_val"))
        # Equal ones are EasyRec's default, which scales nothing.
        if low and high and _is_finite(low[0].value) and _is_finite(high[0].value) and low[0].value != high[0].value:
            part.taken.update(low + high)
            return f"({column} - {low[0].value!r}) / ({high[0].value!r} - {low[0].value!r})"
        said = part.at("normalizer")[-1:]
        text = str(said[0].value) if said else ""
        of = None
        if found := re.fullmatch(r"\s*method=expression\s*,\s*expr=(.+)", text, re.DOTALL):
            try:
                of = self._expression(found[1], {"x": column})
            except _NOT_FITTING:
                return column
        elif found := re.fullmatch(r"\s*method=(\w+)((?:,\s*\w+=[-+.\w]+)*)\s*", text):
            formula, numbers = tables.NORMALIZERS.get(found[1], ("", {}))
            pairs = (pair.strip().split("=") for pair in found[2].split(",")[1:])
            given = {**numbers, **{key: _float(value) for key, value in pairs}}
            # The formula of log10 has the threshold 0, which is as good as the usual one.
            is_plain = given.keys() == numbers.keys() and 0 <= given.get("threshold", 0) <= 1e-6
            is_plain &= given.get("standard_deviation") != 0 and given.get("min", 0) != given.get("max", 1)
            if formula and is_plain and all(_is_finite(value) for value in given.values()):
                of = formula.format(x=column, **given)
        part.taken.update(said if of else ())
        return of or column

    def _expression(self, text: str, names: dict[str, str]) -> str:
        """An expression of C as one of ours. Raises what `_NOT_FITTING` lists."""
        of = ours(text, names)
        if type_of(of, self.columns.types.__getitem__) not in ("int", "float", "bool"):
            raise MissingError(f"its expression {shown(text)} is not a number; write it by hand")
        return of

    def _check(self, made: Fields) -> None:
        allowed = {"number": ("int", "float", "bool"), "ids": ("list[int]", "list[string]"), "vector": ("list[float]",)}
        for of in made["of"] if made["kind"] == "cross" else [made["of"]]:
            if type_of(of, self.columns.types.__getitem__) not in allowed.get(made["kind"], ("int", "string", "bool")):
                raise MissingError(f"{of} has a type that kind: {made['kind']} does not read; write it by hand")

    def _leave_out(self, declared: Declaration, name: str, why: str) -> None:
        part = declared.part
        leaves = [(path, one) for path, one in part.leaves() if one.name != "feature_name"]
        part.taken.update(one for _, one in part.leaves())
        settings = ", ".join(f"{path.removeprefix(part.path + '.')} {shown(one.value)}" for path, one in leaves)
        line = part.settings[0].line if part.settings else 0
        self.lost.append(Lost(part.path or "feature", f"{shown(name)} ({settings})", line, f"left out: {why}"))
        self.features.append(Proposed(shown(name)[1:-1], None, f"line {line}: {shown(why, 200)[1:-1]}"))


def fits(section: Any, key: str, value: object, **others: object) -> bool:
    """Says if a section of the scenario allows the value for this key, beside other values."""
    try:
        section.model_validate({key: value, **others})
    except ValidationError:
        return False
    return True


def _name_of(declared: Declaration) -> str:
    part, sequence = declared.part, declared.sequence
    names = [*part.at("feature_name")[-1:], *part.at("sequence_name")[-1:]]
    name = str(names[0].value) if names else "_".join([str(one.value) for one in part.at("input_names")]) or "feature"
    around = [str(one.value) for one in sequence.at("sequence_name")[-1:]] if sequence else []
    return "__".join([*around, name])


def _sources(declared: Declaration) -> list[str]:
    """The names of its columns in the files, with their sides; by default the feature's own name."""
    found = declared.part.values("expression") or declared.part.values("input_names")
    if declared.sequence is None:
        return found or [_name_of(declared)]
    name = found[-1].rpartition(":")[2] if found else _name_of(declared).rpartition("__")[2]
    return [f"{_name_of(declared).rpartition('__')[0]}__{name}"]


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
