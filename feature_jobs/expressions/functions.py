"""The functions of expressions: their arguments, and a sentence of help that docs/reference.md shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

TEXT, TEXTS, FLOATS = ("string",), ("list[string]",), ("list[float]",)
NUMBER, NUMBERS, IDS = ("int", "float"), ("list[int]", "list[float]"), ("list[int]", "list[string]")
KEYS = ("int", "string", *IDS)
COMBINERS = ("sum", "mean", "min", "max", "count")
OVERLAPS = (
    "query_common_ratio",
    "title_common_ratio",
    "is_contain",
    "is_equal",
    "index_of",
    "proximity_min_cover",
    "proximity_min_dist",
    "proximity_max_dist",
    "proximity_avg_dist",
)


@dataclass(frozen=True)
class Function:
    """A function of expressions: the number of its arguments (`most` None: any) and one sentence of help.

    Those with `takes` compute texts and lists row by row (`feature_jobs.expressions.lists`); they have no SQL. `takes`
    are the types that each argument may have, `gives` is the type of the result (empty: that of the first argument).
    """

    least: int
    most: int | None
    help: str
    takes: tuple[tuple[str, ...], ...] = ()
    gives: str = ""
    quoted: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Arguments that are texts in quotes, by place, and the texts allowed; empty: any."""
    listed: frozenset[int] = frozenset()
    """Arguments that may be a list in brackets."""
    pattern: int | None = None
    """The argument that is a regular expression."""
    alike: bool = False
    """Says that the first two arguments have one type."""


_COMBINED = "combined by 'sum' (the default), 'mean', 'min', 'max' or 'count'"

FUNCTIONS: dict[str, Function] = {
    "abs": Function(1, 1, "abs(x) is the distance of x from zero"),
    "min": Function(2, None, "min(a, b, ...) is the smallest of them, and null if one is null"),
    "max": Function(2, None, "max(a, b, ...) is the largest of them, and null if one is null"),
    "floor": Function(1, 1, "floor(x) is x rounded down to a whole number, and null where that does not fit 64 bits"),
    "log1p": Function(1, 1, "log1p(x) is the natural logarithm of 1 + x, and null where x is not above -1"),
    "exp": Function(1, 1, "exp(x) is e to the power of x"),
    "sqrt": Function(1, 1, "sqrt(x) is the square root of x, and null where x is below 0"),
    "coalesce": Function(2, None, "coalesce(a, b, ...) is the first of them that is not null"),
    "length": Function(1, 1, "length(x) is the number of characters of a text, or of values of a list"),
    "lower": Function(1, 1, "lower(x) is the text in small letters"),
    "starts_with": Function(2, 2, "starts_with(text, prefix) is true where the text begins with the prefix"),
    "contains": Function(2, 2, "contains(text, part) is true where the part occurs in the text"),
    "matches": Function(
        2,
        2,
        "matches(text, 'pattern') is true where the regular expression (RE2 syntax) is found in the text",
        pattern=1,
    ),
    "hour": Function(1, 1, "hour(t) is the hour of a time such as event_time, 0 to 23, in the scenario's zone"),
    "weekday": Function(1, 1, "weekday(t) is the weekday of a time, Monday 0 to Sunday 6, in the scenario's zone"),
    "bucket": Function(2, 2, "bucket(x, width) is the number of the step of this width that x is in, floor(x / width)"),
    "bucketize": Function(
        2,
        2,
        "bucketize(x, [b1, b2, ...]) is the number of boundaries, in rising order, that x is not below",
        (NUMBER, NUMBERS),
        "int",
        listed=frozenset({1}),
    ),
    "normalize": Function(
        1,
        1,
        "normalize(text) is the text in Unicode's form NFKC, in which letters of full width are plain ones",
        (TEXT,),
        "string",
    ),
    "regex_replace": Function(
        3,
        3,
        "regex_replace(text, 'pattern', 'replacement') is the text, or list of texts, with each match of the regular"
        " expression (RE2 syntax) replaced; \\1 in the replacement is its first group",
        (("string", "list[string]"), TEXT, TEXT),
        quoted={1: (), 2: ()},
        pattern=1,
    ),
    "tokenize": Function(
        1,
        1,
        "tokenize(text) is the list of its words: runs of letters and digits, and each Chinese character or Japanese"
        " kana alone",
        (TEXT,),
        "list[string]",
    ),
    "split": Function(
        2,
        2,
        "split(text, 'separator') is the list of the parts between separators, without spaces around them; empty parts"
        " are left out",
        (TEXT, TEXT),
        "list[string]",
        quoted={1: ()},
    ),
    "overlap": Function(
        3,
        3,
        f"overlap(query, title, 'method') is a number that compares two lists; the methods are {', '.join(OVERLAPS)}",
        (IDS, IDS, TEXT),
        "float",
        quoted={2: OVERLAPS},
        alike=True,
    ),
    "lookup": Function(
        2,
        3,
        "lookup(map, key, 'sum') is the number of the key in a list of texts 'key:number'; several keys are"
        f" {_COMBINED}; null where none is found",
        (TEXTS, KEYS, TEXT),
        "float",
        quoted={2: COMBINERS},
        listed=frozenset({0}),
    ),
    "lookup_text": Function(
        2,
        2,
        "lookup_text(map, key) is the text of the key in a list of texts 'key:text', and null where it is not found",
        (TEXTS, ("int", "string")),
        "string",
        listed=frozenset({0}),
    ),
    "nested_lookup": Function(
        3,
        4,
        "nested_lookup(map, key, inner_key, 'sum') is the number of two keys in a list of texts"
        f" 'key^inner_key:number,inner_key:number'; 'ALL' is every key; several numbers are {_COMBINED}",
        (TEXTS, ("int", "string"), ("int", "string"), TEXT),
        "float",
        quoted={3: COMBINERS},
    ),
    "kv_dot_product": Function(
        2,
        2,
        "kv_dot_product(a, b) is the sum of the products of the numbers of equal keys, of two lists of texts"
        " 'key:number'; a key alone counts as 1",
        (TEXTS, TEXTS),
        "float",
        listed=frozenset({0, 1}),
    ),
    "bool_mask": Function(
        2,
        2,
        "bool_mask(values, mask) is the list of the values at whose place the mask has true, yes or 1",
        (("list[int]", "list[string]", "list[float]"), IDS),
    ),
    "combine": Function(
        2, 2, f"combine(values, 'sum') is a list of numbers {_COMBINED}", (NUMBERS, TEXT), "float", {1: COMBINERS}
    ),
    "dot": Function(2, 2, "dot(a, b) is the dot product of two vectors of one width", (FLOATS, FLOATS), "float"),
    "cosine": Function(
        2,
        2,
        "cosine(a, b) is the cosine of the angle between two vectors of one width, and null where one is zero",
        (FLOATS, FLOATS),
        "float",
    ),
    "euclid_dist": Function(
        2,
        2,
        "euclid_dist(a, b) is the Euclidean distance between two vectors of one width",
        (FLOATS, FLOATS),
        "float",
    ),
}
