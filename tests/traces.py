"""Looks for a user in every file below a folder, in any file format: raw, and as the key of an embedding."""

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file

from feature_jobs.transforms import hash_ids


def traces(root: Path, user: str, namespaces: tuple[str, ...]) -> list[str]:
    """Files that hold the user, and in which form. Packed formats are decoded; all files are searched as bytes too."""
    keys = {int(hash_ids(pa.array([user]), namespace)[0]) for namespace in namespaces}
    files = [file for file in sorted(root.rglob("*")) if file.is_file()]
    return [f"{file.relative_to(root)}: {what}" for file in files for what in _found(file, user, keys)]


def _found(file: Path, user: str, keys: set[int]) -> Iterator[str]:
    data = file.read_bytes()
    if re.search(rb"(?<![0-9A-Za-z])" + re.escape(user.encode()) + rb"(?![0-9A-Za-z])", data):
        yield "the id"
    for key in keys:
        texts = [str(key).encode(), f"{key & (2**64 - 1):x}".encode(), str(key & (2**64 - 1)).encode()]
        if any(
            form in data
            for form in (key.to_bytes(8, "little", signed=True), key.to_bytes(8, "big", signed=True), *texts)
        ):
            yield "the key of its embedding"
    if file.suffix == ".parquet":
        for value in _values(pq.read_table(file)):
            if value in (user, *keys) or (isinstance(value, str) and f'"{user}"' in value):
                yield "a cell"
    if file.suffix == ".safetensors" and any(
        tensor.dtype == "int64" and bool(set(tensor.ravel().tolist()) & keys) for tensor in load_file(file).values()
    ):
        yield "a key of a table"


def _values(table: pa.Table) -> Iterator[object]:
    for column in table.columns:
        for value in column.to_pylist():
            yield from value if isinstance(value, list) else [value]
