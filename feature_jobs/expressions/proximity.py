"""Places of a query's terms in a title: the methods of `overlap` that depend on the order of terms.

A term is a number; one of the query that no title has is -1. Proximity is that of Tao and Zhai (SIGIR 2007): the
distance of two terms is that of their closest occurrences in the title.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

Terms = Sequence[int]


def _index_of(query: Terms, title: Terms) -> float:
    """The first place of the whole query in the title, -1 where it is not there. A query without terms is not."""
    size = len(query)
    places = range(len(title) - size + 1) if size and -1 not in query else range(0)
    return float(next((n for n in places if title[n : n + size] == query), -1))


def _is_contain(query: Terms, title: Terms) -> float:
    return float(_index_of(query, title) >= 0)


def _is_equal(query: Terms, title: Terms) -> float:
    return float(bool(query) and query == title)


def _min_cover(query: Terms, title: Terms) -> float:
    """The length of the shortest part of the title with every term of the query; 0 where the title lacks one."""
    wanted = set(query)
    last: dict[int, int] = {}
    best = 0
    for place, term in enumerate(title):
        if term in wanted:
            last[term] = place
            if len(last) == len(wanted):
                cover = place - min(last.values()) + 1
                best = min(best or cover, cover)
    return float(best)


def _distances(query: Terms, title: Terms) -> list[int]:
    """The distance of each pair of different terms that both are in the title."""
    places: dict[int, list[int]] = {}
    for place, term in enumerate(title):
        if term in query:
            places.setdefault(term, []).append(place)
    pairs = itertools.combinations(places.values(), 2)
    return [min(abs(a - b) for a in first for b in second) for first, second in pairs]


def _proximity(choose: Callable[[list[int]], float]) -> Callable[[Terms, Terms], float]:
    """A statistic of these distances; where there is none, one more than the title's length."""

    def compare(query: Terms, title: Terms) -> float:
        return float(choose(found)) if (found := _distances(query, title)) else float(len(title) + 1)

    return compare


PROXIMITIES: dict[str, Callable[[Terms, Terms], float]] = {
    "is_contain": _is_contain,
    "is_equal": _is_equal,
    "index_of": _index_of,
    "proximity_min_cover": _min_cover,
    "proximity_min_dist": _proximity(min),
    "proximity_max_dist": _proximity(max),
    "proximity_avg_dist": _proximity(lambda found: sum(found) / len(found)),
}
