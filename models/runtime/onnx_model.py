"""Runs an exported model: raw feature rows in, probabilities out. Serving and the export's check share this code.

The embeddings are in a frozen table beside the ONNX graph. The graph's inputs are `embeddings` [B, F, D] float32
(slots, then bags) and `numbers` [B, K] float32 (NaN = null); its output is `probabilities` [B, T]. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa
from typing_extensions import TypedDict

from feature_jobs.control_records import checked_name, open_regular, read_record_file
from feature_jobs.errors import CorruptError
from feature_jobs.transforms import Encoded, Floats, Layout, encode, numbered_shares
from models.kernels.interaction_kernels import factorization_forward
from models.runtime.files import MODEL_FILE, SERVING_FILE, TABLE_FILE
from models.runtime.frozen_tables import FrozenTable

BATCH_ROWS = 512
FORMAT = 3
READ_FORMATS = (2, 3)
"""Format 2 has all of the network in its graph; one of format 3 may have the input PAIRS."""
PAIRS = "pairs"
"""The input of a graph that has the sum over pairs of features [B], and the name of their weights in its metadata."""

FETCH = "fetch the export again"

_NO_NUMBERS = np.zeros((0, 0), np.float32), dict[str, Floats]()
Feeds = dict[str, Floats]


class ServingFormat(TypedDict):
    """The part of serving.json that every release can read."""

    format: int


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
        options.log_severity_level = 3  # errors alone
        try:
            self._session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no class in common
            raise CorruptError(f"{model}: not a readable ONNX graph ({_first_line(error)}); {FETCH}") from None
        # The exporter drops an input that no feature uses.
        self._names = {tensor.name for tensor in self._session.get_inputs()}
        self._pair_weights_F = _pair_weights(model, self._session) if PAIRS in self._names else None
        self.layout, self.tasks, self.table = layout, tasks, table
        self._table_F = layout.feature_tables
        if len(layout.namespaces) > len(table.default_TD):  # the kernel reads default rows without bounds
            raise CorruptError(
                f"{model}: the layout has {len(layout.namespaces)} tables, the embeddings have {len(table.default_TD)};"
                f" {FETCH}"
            )
        if self._pair_weights_F is not None and len(self._pair_weights_F) != len(self._table_F):
            raise CorruptError(
                f"{model}: {len(self._pair_weights_F)} weights of {PAIRS} for {len(self._table_F)} features; {FETCH}"
            )
        # Compiles the kernel now: the first request must not wait for it.
        none, offsets = np.empty(0, np.int64), np.zeros(1, np.int64)
        nothing = Encoded([none] * len(layout.slots), {bag.name: (none, offsets) for bag in layout.bags}, *_NO_NUMBERS)
        self.embed(nothing)

    def embed(self, encoded: Encoded, places: Sequence[int] | None = None, into: Floats | None = None) -> Floats:
        """Embeddings [B, F, D]; of some features only where these have `places`, and added to those of `into`."""
        bags, num_samples = list(encoded.bags.values()), len(encoded.numbers_NK)
        if into is None:
            into = np.zeros((num_samples, len(self._table_F), self.table.dim), np.float32)
        places = range(len(self._table_F)) if places is None else places
        self.table.add(encoded.slots, bags, self._table_F, places, emb_BFD=into, shares=numbered_shares(encoded))
        return into

    def feeds(self, encoded: Encoded) -> Feeds:
        """The graph's inputs."""
        return self._feeds(self.embed(encoded), encoded.numbers_NK)

    def _feeds(self, emb_BFD: Floats, numbers_BK: Floats) -> Feeds:
        feeds = {"embeddings": emb_BFD, "numbers": numbers_BK}
        if self._pair_weights_F is not None:
            feeds[PAIRS] = self._pairs(emb_BFD, self._pair_weights_F)
        return {name: values for name, values in feeds.items() if name in self._names}

    def _pairs(self, emb_BFD: Floats, weight_F: Floats) -> Floats:
        """The sum over pairs of features [B]; ONNX Runtime's own takes longer than all other layers together."""
        sum_BD, term_B = np.empty((len(emb_BFD), self.table.dim), np.float32), np.empty(len(emb_BFD), np.float32)
        factorization_forward(self.table.dim, False)(emb_BFD.reshape(len(emb_BFD), -1), weight_F, sum_BD, term_B)
        return term_B

    def run(self, encoded: Encoded) -> Floats:
        """Probabilities [B, T] of one batch."""
        return self.run_inputs(self.embed(encoded), encoded.numbers_NK)

    def run_inputs(self, emb_BFD: Floats, numbers_BK: Floats) -> Floats:
        """The same, of embeddings [B, F, D] and numbers [B, K]."""
        return np.asarray(self._session.run(["probabilities"], self._feeds(emb_BFD, numbers_BK))[0], np.float32)

    @property
    def no_scores(self) -> Floats:
        """Probabilities of no rows."""
        return np.zeros((0, len(self.tasks)), np.float32)

    def score(self, samples: pa.Table) -> Floats:
        """Probabilities [N, T] of rows that have the layout's columns. A row's scores do not depend on other rows.

        Raises BadInputError for a column that is missing or of the wrong type.
        """
        parts = [samples.slice(begin, BATCH_ROWS) for begin in range(0, samples.num_rows, BATCH_ROWS)]
        scores = [self.run(encode(part, self.layout)) for part in parts]
        return np.concatenate(scores) if scores else self.no_scores


def _pair_weights(file: Path, session: ort.InferenceSession) -> Floats:
    """The weights of features in the sum over pairs, from the metadata of a graph."""
    try:
        return np.array(json.loads(session.get_modelmeta().custom_metadata_map[PAIRS]), np.float32)
    except (KeyError, TypeError, ValueError):
        raise CorruptError(f"{file}: its metadata has no weights of {PAIRS}; {FETCH}") from None


def read_serving(folder: Path, digest: str | None = None) -> ServingFacts:
    """Reads serving.json of an export and checks the files against the digests in it.

    `digest`: the SHA-256 that serving.json itself must have. Raises CorruptError if a file is missing or differs.
    """
    place = folder / SERVING_FILE
    try:
        if digest is not None:
            check_digest(place, digest)
        # The format before the rest: another one has other keys, and would be called damaged.
        version = read_record_file(place, ServingFormat, FETCH, extra="ignore")["format"]
        if version not in READ_FORMATS:
            known = " and ".join(map(str, READ_FORMATS))
            raise CorruptError(f"{place}: format {version}; this code reads {known}; {FETCH}")
        facts = read_record_file(place, ServingFacts, FETCH, extra="ignore")
        for name, expected in facts["files"].items():
            check_digest(folder / checked_name(name, str(place), FETCH), expected)
    except OSError as error:
        raise CorruptError(f"{folder}: not a readable export ({error}); {FETCH}") from None
    if missing := {MODEL_FILE, TABLE_FILE} - facts["files"].keys():
        raise CorruptError(f"{place}: has no digest of {', '.join(sorted(missing))}; {FETCH}")
    return facts


def check_digest(file: Path, digest: str) -> None:
    """Raises CorruptError if the file has another SHA-256 or is not a regular file."""
    found = sha256_of(file)
    if found != digest:
        raise CorruptError(f"{file}: digest {found[:12]} is not the expected {digest[:12]}; {FETCH}")


def sha256_of(file: Path) -> str:
    """The SHA-256 of a regular file, in hex."""
    with open_regular(file, FETCH) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
