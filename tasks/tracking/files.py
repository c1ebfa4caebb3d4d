"""The file that `register` writes into its output folder."""

from pathlib import Path

from typing_extensions import TypedDict

from feature_jobs.control_records import read_record_file
from feature_jobs.errors import CorruptError
from tasks.store.records import FileFacts

VERSION_FILE = "version.json"


class Registration(TypedDict):
    """version.json: the version that the export became. `checkpoint`, `export`: their digests; `files`: the files of
    the logged model, see tracking.model_files."""

    name: str
    version: str
    model_uri: str
    checkpoint: str
    export: str
    files: dict[str, FileFacts]


def read_registration(folder: Path, remedy: str) -> Registration:
    """version.json of a committed folder. Raises CorruptError where it is not readable or of an older release."""
    place = folder / VERSION_FILE
    try:
        return read_record_file(place, Registration, remedy)
    except FileNotFoundError:
        raise CorruptError(f"{place}: missing; {remedy}") from None
