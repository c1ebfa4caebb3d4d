"""Bodies of requests that are wrong in one or several places, made from right ones; the same seed makes the same."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from tests.unit.serving.requests import binary_body, json_body
from tests.unit.serving.shop import BIG

# What a careless or hostile client could write in the place of any value.
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**30, 0.5, -0.0, 1e308, "",
    "s1", "x" * 5_000, "\0", "é\u2028", "2024-03-02T10:00:00Z",
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00",
    "1e5", "INT8", "BYTES", "FP16", "BOOL", "UINT64", "items", "user", "price", "buy", "bought",
    [], [None], [[]], [[1]], [1, "a"], [1, 2.5],
    {}, {"a": 1}, {"binary_data_size": 3}, {"binary_data": True}, {"binary_data_size": 10**18},
    {"binary_data_size": -1},
)  # fmt: skip
CONTEXT = {"bought": ("INT64", [1]), "rated": ("FP64", [3.0]), "at": ("BYTES", ["2024-03-03"])}
FEATURES: dict[str, tuple[str, list[Any]]] = {
    "shopper": ("BYTES", ["s1", "s2"]), "product": ("INT64", [1, 2]), "price": ("FP64", [8.0, 11.0]),
    "age": ("FP32", [21.0, 22.0]), "seen": ("FP64", [1.0, 2.0]), "buy_rate": ("FP64", [0.5, 0.5]),
    "shopper_rate": ("FP64", [0.5, 0.5]),
}  # fmt: skip


def bodies(seed: int, num: int) -> Iterator[tuple[bytes, dict[str, str]]]:
    """Bodies with their headers."""
    rng = random.Random(seed)
    for _ in range(num):
        inputs: dict[str, tuple[str, list[Any]]] = {
            "user": ("BYTES", ["s1"]),
            "items": ("INT64", rng.choice([[], [1], [1, 2, BIG], list(range(40))])),
            **{name: CONTEXT[name] for name in rng.sample(sorted(CONTEXT), rng.randrange(3))},
        }
        if rng.random() < 0.2:
            inputs = dict(FEATURES)
        parameters = {"time": "2024-03-03T10:00:00Z", "explain": rng.random() < 0.2}
        if rng.random() < 0.5:
            document = json.loads(json_body(inputs, parameters=parameters))
            yield _bytes(rng, json.dumps(_wrong(rng, document)).encode()), {}
        else:
            body, length = binary_body(inputs, parameters={**parameters, "binary_data_output": True})
            document, raw = json.loads(body[:length]), body[length:]
            head = json.dumps(_wrong(rng, document)).encode()
            said = rng.choice([len(head)] * 9 + [rng.randrange(2 * len(head)), -1, "", "1e3"])
            yield _bytes(rng, head + raw), {"inference-header-content-length": str(said)}


def _wrong(rng: random.Random, document: Any) -> Any:
    """A copy of a document with some values replaced, removed, moved or doubled."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 4])):
        places = list(_places(document))
        holder, key = rng.choice(places)
        match rng.randrange(5):
            case 0 if isinstance(holder, dict):
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[key]))
            case 2:
                other, its_key = rng.choice(places)
                holder[key] = copy.deepcopy(other[its_key])
            case 3 if isinstance(holder, dict):
                holder[str(rng.choice(ODD))] = rng.choice(ODD)
            case _:
                holder[key] = copy.deepcopy(rng.choice(ODD))
        if not list(_places(document)):
            break
    return document


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in list(items):
        yield value, key
        yield from _places(one)


def _bytes(rng: random.Random, body: bytes) -> bytes:
    """Mostly the same; else with bytes changed, removed or added."""
    if not body or rng.random() < 0.85:
        return body
    at = rng.randrange(len(body))
    match rng.randrange(4):
        case 0:
            return body[:at]
        case 1:
            return body[:at] + rng.randbytes(1) + body[at + 1 :]
        case 2:
            return body + rng.randbytes(rng.randrange(20))
    return rng.randbytes(rng.randrange(200))
