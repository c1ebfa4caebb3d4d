"""Features of EasyRec that compute texts, maps and lists, as expressions of ours."""

from __future__ import annotations

from collections.abc import Callable

from feature_jobs.expressions.functions import COMBINERS, OVERLAPS
from feature_jobs.proposals import easyrec_tables as tables
from feature_jobs.proposals.easyrec_columns import MissingError, Shape
from feature_jobs.proposals.easyrec_config import NUMBER, Part

ColumnOf = Callable[[str, Shape], str]
"""The name in expressions of a column of the config, read as a shape."""


def transformed(kind: str, part: Part, column: ColumnOf) -> tuple[str, str]:
    """The kind of feature and its expression. Raises MissingError where ours would mean something else."""
    if any(part.at(name) for name in ("sequence_fields", "show_pkey", "show_skey", "need_key", "needKey")):
        raise MissingError(f"its result has parts that ours has not; {tables.IN_LOG}")
    sizes = [*part.at("value_dim"), *part.at("value_dimension")]
    if any(one.value not in (0, 1) for one in sizes):
        raise MissingError("its result is a vector; write it as a column of type list[float]")
    part.taken.update(sizes)
    return _READERS[kind](part, column)


def _source(part: Part, *names: str) -> str:
    for name in names:
        if found := part.value(name):
            return str(found)
    raise MissingError(f"names no {names[0]}; write it by hand")


def _combiner(part: Part) -> str:
    said = part.value("combiner") or "sum"
    if said not in COMBINERS:
        raise MissingError(f"combines by {said}, which ours does not; {tables.IN_LOG}")
    return "" if said == "sum" else f", {said!r}"


def _or_default(of: str, part: Part) -> str:
    """With the default that the config gives for rows without a value."""
    said = part.at("default_value")[-1:]
    try:
        default = float(str(said[0].value)) if said else None
    except ValueError:
        default = None
    if default is None or not -1e300 < default < 1e300:
        return of
    part.taken.update(said)
    return f"coalesce({of}, {default!r})"


_OF_IDS = ("hash_bucket_size", "num_buckets", "vocab_list", "vocab_dict", "vocab_file", "zch", "dynamicemb")


def _discrete(part: Part) -> bool:
    """Says if what is found is an id, and not a number."""
    said = [one for name in ("need_discrete", "needDiscrete") for one in part.at(name)[-1:] if type(one.value) is bool]
    part.taken.update(said)
    if part.at("feature_type"):  # in fg.json it is one where nothing is said
        return all(one.value for one in said)
    return any(one.value for one in said) or any(part.at(name) for name in _OF_IDS)


def _lookup(part: Part, column: ColumnOf) -> tuple[str, str]:
    entries, key = column(_source(part, "map"), "list"), column(_source(part, "key"), "id")
    if _discrete(part):
        return "id", f"lookup_text({entries}, {key})"
    return "number", _or_default(f"lookup({entries}, {key}{_combiner(part)})", part)


def _match(part: Part, column: ColumnOf) -> tuple[str, str]:
    if _discrete(part):
        raise MissingError(f"looks up texts by two keys; {tables.IN_LOG}")
    entries = column(_source(part, "nested_map", "user"), "list")
    pairs = [_source(part, "pkey", "category"), _source(part, "skey", "item")]
    keys = ", ".join(repr(one) if one == "ALL" else column(one, "id") for one in pairs)
    return "number", _or_default(f"nested_lookup({entries}, {keys}{_combiner(part)})", part)


def _combine(part: Part, column: ColumnOf) -> tuple[str, str]:
    values = [(one.value("key"), one.value("value", NUMBER)) for one in part.parts("value_map")]
    source = _source(part, "expression")
    if any(key is None or value is None for key, value in values):
        raise MissingError("a key of its value_map has no number; write it by hand")
    kind, form = ("id", "floor({})") if part.at("num_buckets") else ("number", "{}")
    if values:
        entries = ", ".join(repr(f"{key}:{value}") for key, value in values)
        found = f"lookup([{entries}], {column(source, 'id')}{_combiner(part)})"
    else:
        found = f"combine({column(source, 'vector')}{_combiner(part) or ', ' + repr('sum')})"
    return kind, form.format(_or_default(found, part))


def _overlap(part: Part, column: ColumnOf) -> tuple[str, str]:
    method = part.value("method") or "query_common_ratio"
    if method not in OVERLAPS:
        raise MissingError(f"compares by {method}, which ours does not; {tables.IN_LOG}")
    sides = [column(_source(part, name), "list") for name in ("query", "title")]
    return "number", _or_default(f"overlap({', '.join(sides)}, {method!r})", part)


def _kv_dot_product(part: Part, column: ColumnOf) -> tuple[str, str]:
    if (part.value("kv_delimiter") or ":") != ":":
        raise MissingError("keys and numbers are not separated by a colon; write them so in the log")
    sides = [column(_source(part, name), "list") for name in ("query", "document")]
    return "number", _or_default(f"kv_dot_product({', '.join(sides)})", part)


def _bool_mask(part: Part, column: ColumnOf) -> tuple[str, str]:
    sources = part.values("expression")
    if len(sources) != 2:
        raise MissingError(f"reads {len(sources)} columns, not values and a mask; write it by hand")
    values, mask = (column(source, "list") for source in sources)
    return "ids", f"bool_mask({values}, {mask})"


def _tokenize(part: Part, column: ColumnOf) -> tuple[str, str]:
    of = column(_source(part, "expression"), "text")
    normalizers = part.parts("text_normalizer")
    said = [one for normalizer in normalizers for one in normalizer.at("norm_options")]
    options = {str(one.value) for one in said} or {"TEXT_UPPER2LOWER", "TEXT_SBC2DBC"}
    if normalizers:
        of = f"normalize({of})" if "TEXT_SBC2DBC" in options else of
        # Ids of words depend on letters being alike, not on their size.
        of = f"lower({of})" if options & {"TEXT_UPPER2LOWER", "TEXT_LOWER2UPPER"} else of
    part.taken.update(one for one in said if one.value in tables.NORMAL)
    return "ids", f"tokenize({of})"


def _regex_replace(part: Part, column: ColumnOf) -> tuple[str, str]:
    patterns, replacement = part.values("regex_pattern"), part.value("replacement") or ""
    if part.value("replace_all", (bool,)) is False and not all(one.lstrip("(?s)").startswith("^") for one in patterns):
        raise MissingError("replaces the first match alone; anchor its pattern with ^, or write it in the log")
    if not patterns:
        raise MissingError("names no regex_pattern; write it by hand")
    of, folded = column(_source(part, "expression"), "text"), "(?i)" if part.value("icase", (bool,)) else ""
    for pattern in patterns:
        of = f"regex_replace({of}, {folded + pattern!r}, {replacement!r})"
    return "id", of


_READERS = {
    "lookup_feature": _lookup,
    "match_feature": _match,
    "combine_feature": _combine,
    "overlap_feature": _overlap,
    "kv_dot_product": _kv_dot_product,
    "bool_mask_feature": _bool_mask,
    "tokenize_feature": _tokenize,
    "regex_replace_feature": _regex_replace,
}
TRANSFORMS: frozenset[str] = frozenset(_READERS)
