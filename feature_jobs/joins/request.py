"""Features over the rows of a request, and matches of a row's id with its sequences.

The rows that were shown together are known when the request is answered, but none of their outcomes is. So a row is
compared with all rows of its request, also with later ones of the log, and every value that is compared was known at
the earliest of their times. The kernel takes columns and the boundaries of the requests, with numpy and Arrow alone:
the join calls it with all requests of a day (`requests_of`), a server with the items of one (`one_request`), and no
value depends on the other requests. Shapes: N rows, M of them in a request, R requests.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.vectors import Vector, array_of, plain, vector
from feature_jobs.joins.rules import RequestOrMatch, request_expressions, request_features
from feature_jobs.joins.values import ids, is_numeric
from feature_jobs.schema import MatchFeature, Scenario
from feature_jobs.windows.keys import Bools, Ints, Keys, group_rows, keys_of
from feature_jobs.windows.stretches import stretches

Floats = npt.NDArray[np.float64]
ValuesOf = Callable[[Mapping[str, str]], Mapping[str, pa.Array]]
"""Values of expressions, by place."""


@dataclass(frozen=True)
class Requests:
    """Request r shows the rows `order_M[offsets_R[r]:offsets_R[r + 1]]`, in the order of the log."""

    num_rows: int
    order_M: Ints
    offsets_R: Ints

    @cached_property
    def sizes(self) -> Ints:
        """Number of rows of each request. [R]"""
        return np.diff(self.offsets_R)

    @cached_property
    def codes(self) -> Ints:
        """The request of each row in `order_M`. [M]"""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    def parts(self) -> Iterator[tuple[Ints, Requests]]:
        """The numbers of some rows at a time, whole requests together, and the requests among these rows."""
        in_none = np.ones(self.num_rows, bool)
        in_none[self.order_M] = False
        rest = np.flatnonzero(in_none)
        for begin, end in stretches(len(rest)):
            yield rest[begin:end], no_request(end - begin)
        # The requests that begin in a stretch of these rows; one of more rows is not cut.
        first = np.searchsorted(self.offsets_R, [begin for begin, _ in stretches(len(self.order_M))])
        for begin, end in pairwise(np.unique([*first, len(self.sizes)]).tolist()):
            offsets = self.offsets_R[begin : end + 1]
            rows = self.order_M[offsets[0] : offsets[-1]]
            yield rows, Requests(len(rows), np.arange(len(rows)), offsets - offsets[0])

    def earliest(self, times_N: Ints) -> Ints:
        """For each row the earliest time of its request; its own where it is in none. Rows are in time order."""
        found = times_N.copy()
        found[self.order_M] = np.repeat(times_N[self.order_M[self.offsets_R[:-1]]], self.sizes)
        return found


def one_request(num_rows: int) -> Requests:
    """All rows in one request."""
    return Requests(num_rows, np.arange(num_rows), np.array([0, num_rows]))


def no_request(num_rows: int) -> Requests:
    """No row in a request."""
    return Requests(num_rows, np.arange(0), np.zeros(1, np.int64))


def requests_of(users: pa.Array, requests: pa.Array) -> Requests:
    """Rows with equal user and request are in one request; those without a request are in none."""
    return requests_by_key(*request_keys(users, requests))


def request_keys(users: pa.Array, requests: pa.Array) -> tuple[Keys, Bools]:
    """The key of each row's request, and whether it is in one."""
    # A request without a user still shows its rows together. The extra column keeps it apart from users 0 and "".
    known_user = users.is_valid().cast(pa.int64())
    named = users.fill_null("" if pa.types.is_string(users.type) else 0)
    keys, _ = keys_of([named, known_user, requests.fill_null("" if pa.types.is_string(requests.type) else 0)])
    return keys, np.asarray(requests.is_valid())


def requests_by_key(keys: Keys, known: Bools) -> Requests:
    """The requests of rows that have these keys, where they are `known`."""
    groups = group_rows(keys, known)
    return Requests(len(known), groups.order, groups.offsets)


class RequestFeatures:
    """The scenario's features of kind request and match, read once for all days and requests; with `names` these of
    them."""

    def __init__(self, scenario: Scenario, names: Collection[str] | None = None) -> None:
        found = request_features(scenario)
        self._features = {name: one for name, one in found.items() if names is None or name in names}
        self._places = {name: request_expressions(name, feature) for name, feature in self._features.items()}
        self._expressions = {place: e for of_feature in self._places.values() for place, e in of_feature.items()}
        self._file = scenario.file

    def columns(
        self, values_of: ValuesOf, sequences: Mapping[str, pa.Array], requests: Requests
    ) -> dict[str, pa.Array]:
        """Their columns [N]. `values_of` returns the values of expressions, `sequences` holds the columns of sequence
        features."""
        values = values_of(self._expressions)
        found = {}
        for name, feature in self._features.items():
            (of,) = [values[place] for place in self._places[name]] or [None]
            found[name] = _column(f"{self._file}: features.{name}", feature, of, sequences, requests)
        return found


def _column(
    place: str, feature: RequestOrMatch, of: pa.Array | None, sequences: Mapping[str, pa.Array], requests: Requests
) -> pa.Array:
    if isinstance(feature, MatchFeature):
        return match(ids(of, place), sequences[feature.sequence], feature.operation, place)
    if of is None:
        found_M = requests.sizes[requests.codes] if feature.operation == "size" else _positions(requests)
        return _over_rows(requests, requests.order_M, found_M)
    if not is_numeric(of):
        raise BadInputError(f"{place}.of: values of type {of.type} are not numbers; compare a column of numbers")
    return compared(plain(of), feature.operation, requests)


def compared(values: pa.Array, operation: str, requests: Requests) -> pa.Array:
    """Position (from the smallest value), rank (from the largest) or share of the sum in the request, of numbers [N].

    Float64 [N]; null where the number is missing or not finite, and where the row is in no request.
    """
    value_N, known_N = vector(values)
    value_N = value_N.astype(np.float64, copy=False)
    known_N = known_N & np.isfinite(value_N)
    rows, codes = requests.order_M, requests.codes
    if not known_N.all():
        kept = known_N[rows]
        rows, codes = rows[kept], codes[kept]
    value = value_N[rows]
    # Sorted, so that sums do not depend on the order of the rows; equal values stay in the order of the log.
    order = np.lexsort((value if operation != "rank" else -value, codes))
    rows, codes, value = rows[order], codes[order], value[order]
    if operation == "share":
        # bincount adds one after the other, so a request's sum does not depend on its place among the others.
        total = np.bincount(codes, value, minlength=len(requests.sizes))[codes]
        # A share of a sum that is 0 or infinite becomes null below.
        with np.errstate(all="ignore"):
            share = value / total
        return _over_rows(requests, rows, share, np.isfinite(share) & np.isfinite(total))
    place = np.arange(len(rows))
    begins = _changes(codes)
    if operation == "rank":
        found = _last(place, begins | _changes(value)) - _last(place, begins)
    else:
        found = place - _last(place, begins)
    return _over_rows(requests, rows, found + 1)


def match(wanted: pa.Array, lists: pa.Array, operation: str, place: str) -> pa.Array:
    """Count of the row's id in the list of the row, or the place of its first occurrence, from 1. float64 [N]

    A single list stands for all rows: in a request it is that of the user.
    """
    num_rows, lists = len(wanted), lists.fill_null([]) if lists.null_count else lists
    offsets = np.asarray(lists.offsets)
    flat = lists.values[offsets[0] : offsets[-1]]
    if flat.type != wanted.type:
        raise BadInputError(
            f"{place}.of: ids of type {wanted.type}, but the sequence holds {flat.type}; look for ids of the same type"
        )
    known_N = np.asarray(wanted.is_valid()) if wanted.null_count else np.True_
    if pa.types.is_string(flat.type):
        flat, wanted = _numbered(flat, wanted)
    find = _in_one_list if len(lists) == 1 else _in_own_lists
    row, at = find(wanted, flat, offsets)
    if isinstance(known_N, np.ndarray):  # the value under a null is arbitrary
        known = known_N[row]
        row, at = row[known], at[known]
    num_N = np.bincount(row, minlength=num_rows).astype(np.float64)
    if operation == "count":
        return array_of(Vector(num_N, known_N), "float", num_rows)
    first_N = np.zeros(num_rows)
    first_N[row[::-1]] = at[::-1] + 1  # backwards, so that the first occurrence is the last to be written
    return array_of(Vector(first_N, num_N > 0), "float", num_rows)


def _in_one_list(wanted: pa.Array, flat: pa.Array, _: Ints) -> tuple[Ints, Ints]:
    """Each occurrence of a wanted value in one list: the value's row, in order, and the place in the list."""
    (id_N, _), (element, known) = vector(wanted), vector(flat)
    is_hit = id_N[:, None] == element
    hits = np.flatnonzero(is_hit if known is np.True_ else is_hit & known)
    return np.divmod(hits, max(len(flat), 1))


def _in_own_lists(wanted: pa.Array, flat: pa.Array, offsets: Ints) -> tuple[Ints, Ints]:
    """The same for a list of each row: `offsets` are those of the lists, whose values are `flat`."""
    (id_N, _), (element, known) = vector(wanted), vector(flat)
    row = np.repeat(np.arange(len(wanted)), np.diff(offsets))
    hits = np.flatnonzero((element == id_N[row]) & known)
    # Offsets of a slice do not begin with 0, but the values that `flatten` returns are its own.
    return row[hits], hits - (offsets - offsets[0])[row[hits]]


def _numbered(flat: pa.Array, wanted: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Texts as numbers that are equal where the texts are: comparing those is many times as fast."""
    distinct = flat.unique().drop_null()
    numbers = [pc.index_in(texts, value_set=distinct, skip_nulls=True).cast(pa.int64()) for texts in (flat, wanted)]
    # Texts of the lists are numbered from 0, so that -1 is found in none.
    return numbers[0], numbers[1].fill_null(-1)


def _positions(requests: Requests) -> Ints:
    return np.arange(len(requests.order_M)) - requests.offsets_R[:-1][requests.codes] + 1


def _changes(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """True for the first of equal neighbours."""
    new = np.ones(len(values), np.bool_)
    new[1:] = values[1:] != values[:-1]
    return new


def _last(place: Ints, begins: npt.NDArray[np.bool_]) -> Ints:
    """For each place the nearest one up to it that begins something."""
    return np.maximum.accumulate(np.where(begins, place, 0))


def _over_rows(
    requests: Requests, rows: Ints, found: npt.NDArray[Any], known: npt.NDArray[np.bool_] | None = None
) -> pa.Array:
    """float64 [N]: the values at these rows, null elsewhere and where they are not `known`."""
    values_N, known_N = np.zeros(requests.num_rows), np.zeros(requests.num_rows, np.bool_)
    known_N[rows] = True if known is None else known
    values_N[rows] = found if known is None else np.where(known, found, 0.0)
    return array_of(Vector(values_N, known_N), "float", requests.num_rows)
