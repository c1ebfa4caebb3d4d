"""Digests of the store's content: equal values give equal bytes, equal bytes an equal digest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import IO, Any

MANIFEST = "manifest.json"
BUFFER = 1 << 20


def canonical_json(value: Any) -> bytes:
    """Equal values give equal bytes."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def sha256_of(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(stream: IO[bytes]) -> str:
    """Hex digest of the rest of an open file."""
    digest = hashlib.sha256()
    while piece := stream.read(BUFFER):
        digest.update(piece)
    return digest.hexdigest()


def finite(value: Any) -> Any:
    """The same, with null for NaN and infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
