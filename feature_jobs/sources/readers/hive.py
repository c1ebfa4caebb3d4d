"""A table of a Hive metastore, or some of its partitions, read through Spark.

Files of text and ORC hold times of a clock, of which Spark makes moments by the zone of its Java processes. Here these
have the zone of the table's time; those of the machines must not matter.
"""

from __future__ import annotations

import datetime
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow as pa

from feature_jobs.errors import BadInputError, RecloopError, RetryLaterError
from feature_jobs.schema import Scenario
from feature_jobs.sources.bounds import Bounds
from feature_jobs.sources.readers.remote_table import RemoteTable
from feature_jobs.spark_session import spark_session, without_pandas_warning

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

CONNECT_WITHIN_S = 10.0
ANSWER_WITHIN_S = 60
_NO_TABLE = ("TABLE_OR_VIEW_NOT_FOUND", "SCHEMA_NOT_FOUND")
_NOT_ANSWERED = "TTransportException|MetaException|HiveMetaStoreClient"
_LITERALS = {"DATE": "DATE'{:%Y-%m-%d}'", "TIMESTAMP": "TIMESTAMP_NTZ'{:%Y-%m-%d %H:%M:%S}'"}


@dataclass(frozen=True)
class HiveTable(RemoteTable):
    """A table by its path: `schema.table`, and `/column=value` for each partition column that is given.

    `variable` names the environment variable with the metastore's URL. `zone` is that of times without an offset.
    """

    path: str
    variable: str
    zone: str
    scenario: Scenario = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"Hive table {self.path} ({self.variable})"

    @property
    def version(self) -> None:
        """See RemoteTable: it has none."""
        return None

    def schema(self) -> pa.Schema:
        """See RemoteTable."""
        with self._rows() as rows, without_pandas_warning():
            return rows.limit(0).toArrow().schema

    def batches(self, columns: Sequence[str], bounds: Sequence[Bounds] | None) -> Iterator[pa.RecordBatch]:
        """See RemoteTable. Other partitions, and row groups without such rows, are not read."""
        where = " OR ".join(one.sql(_quote(one.name), _literal) for one in bounds) if bounds else "true"
        with self._rows() as rows:
            with without_pandas_warning():
                chosen = rows.where(where).select(*map(_quote, columns))
                packed = chosen.mapInArrow(_packing(), "batch binary")
            # A partition of Spark at a time: the day may be larger than the memory.
            for row in packed.toLocalIterator(prefetchPartitions=True):
                yield from pa.ipc.open_stream(row.batch)

    def num_rows(self) -> int:
        """See RemoteTable."""
        with self._rows() as rows:
            return int(rows.count())

    @contextmanager
    def _rows(self) -> Iterator[DataFrame]:
        """The table's rows in a session that is stopped at the end. Errors of Spark become ours, without their text: it
        can repeat addresses and cells."""
        with self._session() as session:
            from py4j.protocol import Py4JError
            from pyspark.errors import PySparkException

            name, *partitions = self.path.split("/")
            quoted = ".".join(map(_quote, name.split(".")))
            try:
                properties = session.sql(f"SHOW TBLPROPERTIES {quoted}").collect()
                if ("transactional", "true") in [(row.key, str(row.value).lower()) for row in properties]:
                    raise BadInputError(
                        f"{self}: is transactional (ACID), which Spark cannot read; write its rows to another table"
                    )
                rows = session.table(quoted)
                for partition in partitions:
                    column, _, value = partition.partition("=")
                    if column not in rows.columns:
                        raise BadInputError(
                            f"{self}: has no column {column!r}; correct the path, there are: {', '.join(rows.columns)}"
                        )
                    rows = rows.where(rows[column] == value)
                yield rows
            except (PySparkException, Py4JError, pa.ArrowException, OSError) as error:
                raise self._explained(error) from None

    @contextmanager
    def _session(self) -> Iterator[SparkSession]:
        with tempfile.TemporaryDirectory(prefix="recloop-hive-") as folder:
            settings = {
                "spark.sql.catalogImplementation": "hive",
                "spark.log.level": "FATAL",  # others print stacks of Java, and cells
                "spark.sql.warehouse.dir": folder,
                "spark.sql.session.timeZone": self.zone,
                "spark.executor.defaultJavaOptions": f"-Duser.timezone={self.zone}",
                "spark.hadoop.hive.metastore.uris": _addresses(self.variable),
                "spark.hadoop.hive.metastore.client.socket.timeout": f"{ANSWER_WITHIN_S}s",
                "spark.hadoop.hive.metastore.connect.retries": "1",
                "spark.hadoop.hive.metastore.failure.retries": "1",
                "spark.hadoop.hive.downloaded.resources.dir": folder,
            }
            self._require_metastore(settings["spark.hadoop.hive.metastore.uris"])
            with _without_log(), spark_session(self.scenario, str(self), settings) as session:
                zones: Any = session.sparkContext._jvm.java.util.TimeZone  # the process outlives the session
                before = zones.getDefault()
                zones.setDefault(zones.getTimeZone(self.zone))
                try:
                    yield session
                finally:
                    zones.setDefault(before)

    def _require_metastore(self, addresses: str) -> None:
        """Looks for one that can be reached before Java starts; Spark would try for minutes, with pages of messages."""
        for address in addresses.split(","):
            parts = urlsplit(address)
            try:
                socket.create_connection((parts.hostname, parts.port), CONNECT_WITHIN_S).close()
                return
            except OSError:
                continue
        raise self._unreachable()

    def _unreachable(self) -> RetryLaterError:
        return RetryLaterError(
            f"{self}: the metastore cannot be reached or does not answer; try again later, and check the host and port"
            f" in {self.variable} and the network if this repeats"
        )

    def _explained(self, error: Exception) -> RecloopError:
        from pyspark.errors import PySparkException

        condition = (error.getCondition() if isinstance(error, PySparkException) else None) or type(error).__name__
        if condition in _NO_TABLE:
            return BadInputError(f"{self}: no such table there; correct the path (schema.table)")
        if re.search(_NOT_ANSWERED, str(error)):
            return self._unreachable()
        causes = re.findall(r"^(?:Caused by|: )?:? ?(?:[a-z]\w*\.)+(\w+(?:Exception|Error))", str(error), re.MULTILINE)
        return BadInputError(
            f"{self}: Spark cannot read it ({', '.join(dict.fromkeys([condition, *causes]))}); check the table's files,"
            f" its format, and the settings of its file system (docs/spark.md)"
        )


@contextmanager
def _without_log() -> Iterator[None]:
    """PySpark prints an error with its stack before it raises it."""
    from pyspark.logger import PySparkLogger

    loggers = [PySparkLogger.getLogger(f"{kind}QueryContextLogger") for kind in ("SQL", "DataFrame")]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        yield
    finally:
        for logger, was in zip(loggers, before, strict=True):
            logger.disabled = was


def _addresses(variable: str) -> str:
    """The addresses of a metastore, as Hive wants them."""
    url = os.environ.get(variable, "")
    hosts = url.removeprefix("thrift://").replace("thrift://", "").split(",")
    if not url.startswith("thrift://") or not all(re.fullmatch(r"[\w.-]+:\d{1,5}", host, re.ASCII) for host in hosts):
        what = "is not the address of a Hive metastore" if url else "is not set"
        raise BadInputError(f"{variable}: {what}; set it to thrift://HOST:PORT, or thrift://HOST:PORT,HOST:PORT")
    return ",".join(f"thrift://{host}" for host in hosts)


def _packing() -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """For the executors: each batch as one cell of bytes, which Spark passes on as it is."""

    # A function within one travels whole: the executors have not all that this module imports.
    def packed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)
            yield pa.record_batch([pa.array([sink.getvalue().to_pybytes()], pa.binary())], ["batch"])

    return packed


def _literal(moment: datetime.datetime, raw_type: str) -> str:
    """A moment in the SQL of Spark."""
    return _LITERALS.get(raw_type, "TIMESTAMP'{:%Y-%m-%d %H:%M:%S}Z'").format(moment)


def _quote(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
