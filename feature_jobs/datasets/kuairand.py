"""KuaiRand-Pure (Gao et al., CIKM 2022) from its Zenodo record: the last 14 days of the standard policy as events,
each user's earlier videos as history, users and videos."""

from __future__ import annotations

import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import duckdb
import requests

from feature_jobs.errors import BadInputError, RetryLaterError
from feature_jobs.expressions.compiler import literal

URL = "https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz"
ARCHIVE = "KuaiRand-Pure.tar.gz"
STANDARD_ROWS = 1_436_609  # rows of the standard policy, as published
FIRST_DATE = 20220425  # the 14 days from here on are events; the log before them is history
HISTORY_LENGTH = 50
OUTPUTS = ("users.parquet", "videos.parquet", "user_history_to_0424.parquet", "events.parquet")
_LOGS = ("log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv")
_USERS, _VIDEOS = "user_features_pure.csv", "video_features_basic_pure.csv"
_TERMS = "KuaiRand is under CC BY-SA 4.0. Cite Gao et al., KuaiRand, CIKM 2022."

_LOG_TYPES = {
    "user_id": "INTEGER",
    "video_id": "INTEGER",
    "date": "INTEGER",
    "hourmin": "SMALLINT",
    "time_ms": "BIGINT",
    **dict.fromkeys(
        ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view"), "TINYINT"
    ),
    **dict.fromkeys(("play_time_ms", "duration_ms", "profile_stay_time", "comment_stay_time"), "INTEGER"),
    "is_profile_enter": "TINYINT",
    "tab": "TINYINT",
}
_USER_TYPES = {
    "user_id": "BIGINT",
    "user_active_degree": "VARCHAR",
    **dict.fromkeys(("is_lowactive_period", "is_live_streamer", "is_video_author"), "BIGINT"),
    "follow_user_num": "BIGINT",
    "follow_user_num_range": "VARCHAR",
    "fans_user_num": "BIGINT",
    "fans_user_num_range": "VARCHAR",
    "friend_user_num": "BIGINT",
    "friend_user_num_range": "VARCHAR",
    "register_days": "BIGINT",
    "register_days_range": "VARCHAR",
    **{f"onehot_feat{i}": "DOUBLE" if i in (4, *range(12, 18)) else "BIGINT" for i in range(18)},
}
_VIDEO_TYPES = {
    "video_id": "BIGINT",
    "author_id": "BIGINT",
    **dict.fromkeys(("video_type", "upload_dt", "upload_type"), "VARCHAR"),
    **dict.fromkeys(("visible_status", "video_duration", "server_width", "server_height"), "DOUBLE"),
    "music_id": "BIGINT",
    "music_type": "DOUBLE",
    "tag": "VARCHAR",
}


def bring(folder: Path, url: str = URL, num_rows: int = STANDARD_ROWS) -> Iterator[str]:
    """Downloads the archive, unless it lies in `folder`, and converts it; yields lines for a person.

    Raises RetryLaterError where the network fails, BadInputError where the archive is not the published one.
    """
    if all((folder / name).is_file() for name in OUTPUTS):
        yield f"{folder}: KuaiRand-Pure is there"
        return
    folder.mkdir(parents=True, exist_ok=True)
    # In the folder itself: a rename moves a file whole only within one file system.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
        archive = folder / ARCHIVE
        if not archive.is_file():
            archive = Path(scratch) / ARCHIVE
            yield f"downloading {url}"
            _download(url, archive, folder)
        convert(archive, folder, Path(scratch), num_rows)
    yield f"{folder}: {', '.join(OUTPUTS)}"
    yield _TERMS


def _download(url: str, target: Path, folder: Path) -> None:
    by_hand = f"try again, or put {ARCHIVE} into {folder} yourself"
    try:
        # A server that declared gzip as the encoding of the answer would have the archive unpacked on the way.
        as_it_is = {"Accept-Encoding": "identity"}
        # 60 seconds without a byte; a whole download may take longer.
        with requests.get(url, headers=as_it_is, stream=True, timeout=60) as answer, target.open("wb") as file:
            answer.raise_for_status()
            for block in answer.iter_content(1 << 20):
                file.write(block)
            expected = int(answer.headers.get("Content-Length") or file.tell())
    except requests.RequestException as error:
        raise RetryLaterError(f"{url}: {_reason(error)}; {by_hand}") from None
    if target.stat().st_size != expected:
        raise RetryLaterError(f"{url}: received {target.stat().st_size} of {expected} bytes; {by_hand}")


def _reason(error: requests.RequestException) -> str:
    """Returns the cause in the words of the server or the system: the message around them names internals only."""
    if error.response is not None:
        return f"{error.response.status_code} {error.response.reason}"
    system = re.search(r"\[Errno [^'\")]*|[Tt]imed out[^'\")]*", str(error))
    return system.group() if system else str(error)[:200]


def convert(archive: Path, folder: Path, scratch: Path, num_rows: int = STANDARD_ROWS) -> None:
    """Writes the four Parquet files of the archive's CSV files into `folder`, all or none."""
    _unpack(archive, scratch)
    with duckdb.connect(config={"threads": 2, "memory_limit": "2GB", "temp_directory": str(scratch)}) as connection:
        # `row` numbers the rows as the files have them; it decides between events of the same millisecond.
        connection.execute("SET preserve_insertion_order = true")
        try:
            selects = [_csv(connection, scratch / name, _LOG_TYPES) for name in _LOGS]
            connection.execute(
                "CREATE TABLE log AS SELECT *, row_number() OVER () AS row FROM (" + " UNION ALL ".join(selects) + ")"
            )
            found = connection.execute("SELECT count(*) FROM log").fetchall()[0][0]
            if found != num_rows:
                what = f"holds {found:,} rows of the standard policy, not {num_rows:,}"
                raise BadInputError(f"{archive}: {what}; it is not the published one: delete it and fetch again")
            queries = {
                "users.parquet": _csv(connection, scratch / _USERS, _USER_TYPES) + " ORDER BY user_id",
                "videos.parquet": _csv(connection, scratch / _VIDEOS, _VIDEO_TYPES) + " ORDER BY video_id",
                "user_history_to_0424.parquet": _history(),
                "events.parquet": (
                    f"SELECT {', '.join(_LOG_TYPES)} FROM log WHERE date >= {FIRST_DATE} ORDER BY time_ms, row"
                ),
            }
            for name, query in queries.items():
                # COPY takes a plain literal, without a cast.
                target = literal(str(scratch / name)).removesuffix("::VARCHAR")
                connection.execute(f"COPY ({query}) TO {target} (FORMAT parquet, COMPRESSION zstd)")
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            raise BadInputError(
                f"{archive}: {reason}; it is not the published one: delete it and fetch again"
            ) from None
    for name in OUTPUTS:
        (scratch / name).replace(folder / name)


def _unpack(archive: Path, scratch: Path) -> None:
    """Copies the four CSV files out of the archive, wherever in it they lie."""
    wanted = {*_LOGS, _USERS, _VIDEOS}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            # Copied by name, not extracted: no path and no link of the archive decides where something is written.
            for member in tar:
                name = Path(member.name).name
                source = tar.extractfile(member) if name in wanted and member.isfile() else None
                if source is not None:
                    with (scratch / name).open("wb") as file:
                        while block := source.read(1 << 20):
                            file.write(block)
                    wanted.discard(name)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise BadInputError(f"{archive}: not a readable archive ({error}); delete it and fetch again") from None
    if wanted:
        raise BadInputError(f"{archive}: lacks {', '.join(sorted(wanted))}; delete it and fetch again")


def _csv(connection: duckdb.DuckDBPyConnection, file: Path, types: dict[str, str]) -> str:
    """A SELECT of the typed columns of a CSV file. Raises BadInputError where one is missing."""
    scan = f"read_csv({literal(str(file))}, header = true, all_varchar = true, delim = ',', quote = '\"')"
    header = {row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {scan}").fetchall()}
    missing = [name for name in types if name not in header]
    if missing:
        raise BadInputError(f"{file.name}: lacks the columns {', '.join(missing)}; it is not KuaiRand-Pure's")
    # Some whole numbers are written 12.0, so integers are read as numbers first.
    columns = (
        f"CAST({name} AS VARCHAR) AS {name}"
        if kind == "VARCHAR"
        else f"CAST(CAST({name} AS DECIMAL(38, 6)) AS {kind}) AS {name}"
        for name, kind in types.items()
    )
    return f"SELECT {', '.join(columns)} FROM {scan}"


def _history() -> str:
    def last(condition: str) -> str:
        # The 7,583 videos fit 16 bits.
        ids = f"list(CAST(video_id AS SMALLINT) ORDER BY time_ms, row) FILTER ({condition})"
        return f"coalesce({ids}, [])[-{HISTORY_LENGTH}:]"

    return (
        "SELECT user_id, CAST(count(*) AS INTEGER) AS history_len, max(time_ms) AS last_time_ms, "
        f"{last('true')} AS shown_seq, {last('is_like = 1')} AS like_seq, {last('long_view = 1')} AS long_watch_seq "
        f"FROM log WHERE date < {FIRST_DATE} GROUP BY user_id ORDER BY user_id"
    )
