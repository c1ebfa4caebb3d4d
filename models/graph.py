"""The exported graph, run by ONNX Runtime: raw feature rows in, probabilities out. Serving runs this very code.

Its inputs are `rows` [B, S] int64 (of the slots' ids), `numbers` [B, K] float32 (NaN = null) and for each bag
`bag:NAME` [B, L] int64, filled with 0 to the longest of the batch; its output is `probabilities` [B, T].
Imports no torch.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pyarrow as pa

from feature_jobs.transforms import Floats, Ints, Layout, encode
from models.ids import IdMap, Ragged

BATCH_ROWS = 512
GRAPH_FILE, IDS_FILE, SERVING_FILE = "model.onnx", "ids.safetensors", "serving.json"

Feeds = dict[str, Ints | Floats]


class Graph:
    """A session over an exported graph with the ids it knows."""

    def __init__(self, model: Path, layout: Layout, tasks: tuple[str, ...], ids: IdMap, *, threads: int = 1) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        # The exporter leaves out an input that no feature feeds.
        self._names = {tensor.name for tensor in self._session.get_inputs()}
        self.layout, self.tasks, self.ids = layout, tasks, ids

    def feeds(self, samples: pa.Table) -> Feeds:
        """The graph's inputs for rows that have the layout's columns; raises BadInputError for a column amiss."""
        encoded = encode(samples, self.layout)
        rows_BS = self.ids.find(encoded.ids_NS.reshape(-1)).reshape(encoded.ids_NS.shape)
        feeds: Feeds = {"rows": rows_BS, "numbers": encoded.numbers_NK}
        for name, (keys_V, offsets) in encoded.bags.items():
            feeds[f"bag:{name}"] = Ragged(self.ids.find(keys_V), offsets).known().padded()
        return {name: value for name, value in feeds.items() if name in self._names}

    def run(self, feeds: Feeds) -> Floats:
        """Probabilities [B, T]."""
        return np.asarray(self._session.run(["probabilities"], feeds)[0], np.float32)

    def score(self, samples: pa.Table) -> Floats:
        """Probabilities [N, T]; a row's do not depend on the rows beside it."""
        parts = [samples.slice(begin, BATCH_ROWS) for begin in range(0, samples.num_rows, BATCH_ROWS)]
        scores = [self.run(self.feeds(part)) for part in parts]
        return np.concatenate(scores) if scores else np.zeros((0, len(self.tasks)), np.float32)


def sha256_of(file: Path) -> str:
    """Hex digest of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
