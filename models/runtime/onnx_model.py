"""Runs an exported model: raw feature rows in, probabilities out. Serving and the export's check share this code.

The embeddings are in a frozen table beside the ONNX graph. The graph's inputs are `embeddings` [B, F, D] float32
(slots, then bags) and `numbers` [B, K] float32 (NaN = null); its output is `probabilities` [B, T]. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import onnxruntime as ort
import pyarrow as pa

from feature_jobs.errors import CorruptError
from feature_jobs.transforms import Encoded, Floats, Layout, encode
from models.runtime.files import SERVING_FILE
from models.runtime.frozen_tables import FrozenTable

BATCH_ROWS = 512
FORMAT = 2

Feeds = dict[str, Floats]


class ServingFacts(TypedDict):
    """serving.json. `checkpoint`: digest of the checkpoint; `files`: digests of the model and the table, by name."""

    format: int
    scenario: str
    ds: str
    checkpoint: str
    tasks: list[str]
    layout: dict[str, Any]
    files: dict[str, str]


class OnnxModel:
    """An ONNX Runtime session of an exported graph, with the table that holds its embeddings."""

    def __init__(
        self, model: Path, layout: Layout, tasks: tuple[str, ...], table: FrozenTable, *, threads: int = 1
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        # The exporter drops an input that no feature uses.
        self._names = {tensor.name for tensor in self._session.get_inputs()}
        self.layout, self.tasks, self.table = layout, tasks, table
        self._table_F = layout.feature_tables
        # Compiles the kernel now: the first request must not wait for it.
        none, offsets = np.empty(0, np.int64), np.zeros(1, np.int64)
        table.embed([none] * len(layout.slots), [(none, offsets)] * len(layout.bags), self._table_F, 0)

    def embed(self, encoded: Encoded) -> Floats:
        """Embeddings [B, F, D]."""
        return self.table.embed(encoded.slots, list(encoded.bags.values()), self._table_F, len(encoded.numbers_NK))

    def feeds(self, encoded: Encoded) -> Feeds:
        """The graph's inputs."""
        feeds = {"embeddings": self.embed(encoded), "numbers": encoded.numbers_NK}
        return {name: values for name, values in feeds.items() if name in self._names}

    def run(self, encoded: Encoded) -> Floats:
        """Probabilities [B, T] of one batch."""
        return np.asarray(self._session.run(["probabilities"], self.feeds(encoded))[0], np.float32)

    def score(self, samples: pa.Table) -> Floats:
        """Probabilities [N, T] of rows that have the layout's columns. A row's scores do not depend on other rows.

        Raises BadInputError for a column that is missing or of the wrong type.
        """
        parts = [samples.slice(begin, BATCH_ROWS) for begin in range(0, samples.num_rows, BATCH_ROWS)]
        scores = [self.run(encode(part, self.layout)) for part in parts]
        return np.concatenate(scores) if scores else np.zeros((0, len(self.tasks)), np.float32)


def read_serving(folder: Path, digest: str | None = None) -> ServingFacts:
    """Reads serving.json of an export and checks the files against the digests in it.

    `digest`: the SHA-256 that serving.json itself must have. Raises CorruptError if a file is missing or differs.
    """
    try:
        if digest is not None:
            check_digest(folder / SERVING_FILE, digest)
        facts: ServingFacts = json.loads((folder / SERVING_FILE).read_text())
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']}; this code reads {FORMAT}")
        for name, expected in facts["files"].items():
            check_digest(folder / name, expected)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{folder}: not a readable export ({error}); fetch it again") from None
    return facts


def check_digest(file: Path, digest: str) -> None:
    """Raises CorruptError if the file has another SHA-256."""
    found = sha256_of(file)
    if found != digest:
        raise CorruptError(f"{file}: digest {found[:12]} is not the expected {digest[:12]}; fetch the export again")


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
