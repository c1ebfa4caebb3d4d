"""Checks the files of a scenario: are they there, do they read as declared, are there rows on its days, do the keys
of entities occur in the log, do labels hold for some rows and not for all, does a column alone predict a label."""

from __future__ import annotations

import datetime
import itertools
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from feature_jobs.checks.facts import EntityFacts, Facts
from feature_jobs.checks.negatives import check_copied_columns
from feature_jobs.checks.new_columns import check_new_columns
from feature_jobs.checks.problems import NARROW, Problems, some_days
from feature_jobs.checks.requests import check_requests
from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import EVENT_TIME, columns_of, has_sql, to_sql
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import ONE_DAY, day_window
from feature_jobs.schema.encodings import UTF_8
from feature_jobs.sources.bring import Bringer
from feature_jobs.sources.files import Place, files_of
from feature_jobs.sources.malformed import columns_without_value, kinds_of, retyped_columns
from feature_jobs.sources.source import Source, sources_of, time_columns
from feature_jobs.sources.tables import Reader, connect
from feature_jobs.validation.leaks import Leak, judge

SAMPLE_ROWS = 100_000
HEAD_ROWS, MAX_HEADS = 100, 400
MAX_COPIED = 20  # files in another encoding than UTF-8, which are copied as a whole
MAX_ENTITY_ROWS = 2_000_000
MAX_COUNTED_BYTES = 4 * 2**30  # counting a larger log would take too long for a check
_ALWAYS = (-(2**62), 2**62)  # a window of all times, in µs
_WHOLE = ""  # beside the parts of a feature, which are expressions


def check_data(scenario: Scenario, sample_rows: int = SAMPLE_ROWS) -> tuple[list[str], Facts]:
    """Messages about the data, and the facts found on the way.

    Reads `sample_rows` of the first day (warm-up included), all times of the log unless it is huge, and entities whole.
    """
    with ExitStack() as stack:
        check = _DataCheck(scenario, sample_rows, stack)
        events, *others = sources_of(scenario)
        check.log(events)
        for source in others:
            if source.keys:
                check.entity(source)
            else:
                check.further_log(source)
    return check.problems.messages, check.facts


class _DataCheck:
    def __init__(self, scenario: Scenario, sample_rows: int, stack: ExitStack) -> None:
        self.stack = stack
        self.scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.scenario = scenario
        self.sample_rows = sample_rows
        self.problems = Problems(scenario)
        self.facts = Facts(warnings=self.problems.warnings)
        self.first = str(scenario.data.days.first)
        self.keys: dict[tuple[str, ...], set[Any]] = {}

    def log(self, source: Source) -> None:
        """Days of the log, then a sample of its first day."""
        files = self._files_of_days(source)
        if not files:
            return
        connection = self._connect(source)
        try:
            if here := [file for file in files if isinstance(file, Path)]:
                self._days(Reader(connection, self.scenario, source, here, _ALWAYS))
            else:  # another machine would have to send all of it
                self.facts["log"] = f"{files[0]}{' and others' if len(files) > 1 else ''}: read by day"
            staged = self._sample(source, connection)
        except BadInputError as error:
            self.problems.messages.append(str(error))
            return
        self.facts["sample_of"] = self.first
        self._heads(source, self._malformed(source, staged))
        self._labels(source, connection)
        if requests := check_requests(self.problems, source, connection, f"in the sample of {self.first}"):
            self.facts["requests"] = requests
        self._leaks(source, connection)
        check_copied_columns(self.problems, source, connection)
        for entity in self.scenario.data.entities.values():
            keys = replace(source, keys=entity.keys).key_cells
            known = " AND ".join(f"{key} IS NOT NULL" for key in keys)
            rows = connection.execute(f"SELECT DISTINCT {', '.join(keys)} FROM staged WHERE {known}").fetchall()
            self.keys[entity.keys] = {*rows}

    def _sample(self, source: Source, connection: duckdb.DuckDBPyConnection) -> Reader:
        """Stages rows of the first day of a log."""
        window = day_window(self.scenario, self.first)
        # `stage` limits the rows of each file, so the number of files is limited, too.
        places = files_of(self.scenario, source, self.first)[:20]
        files = Bringer(connection, self.scenario, source, self.scratch).bring(places, window)
        staged = Reader(connection, self.scenario, source, files, window)
        staged.stage(self.sample_rows)
        return staged

    def further_log(self, source: Source) -> None:
        """Checks that a further log reads; a day of it may have no rows."""
        if not self._files_of_days(source):
            return
        try:
            staged = self._sample(source, self._connect(source))
        except BadInputError as error:
            self.problems.messages.append(str(error))
            return
        self._heads(source, self._malformed(source, staged))

    def entity(self, source: Source) -> None:
        """Checks that an entity reads, and counts the log's keys that it knows."""
        connection = self._connect(source)
        try:
            places = files_of(self.scenario, source, self.first)
            known = (_ALWAYS[0], day_window(self.scenario, self.first)[1])
            files = Bringer(connection, self.scenario, source, self.scratch).bring(places, known)
            staged = Reader(connection, self.scenario, source, files, _ALWAYS)
            staged.stage(MAX_ENTITY_ROWS)
        except BadInputError as error:
            self.problems.messages.append(str(error))
            return
        self._heads(source, self._malformed(source, staged))
        self._conflicts(source, staged)
        cells = ", ".join(source.key_cells)
        found = connection.execute(f"SELECT {cells}, count(*) FROM staged WHERE reason IS NULL GROUP BY {cells}")
        nums = {row[:-1]: row[-1] for row in found.fetchall()}
        wanted, num = self.keys.get(source.keys, set()), sum(nums.values())
        share = len(wanted & nums.keys()) / len(wanted) if wanted else None
        facts = EntityFacts(rows=num, keys_found=share and round(share, 4))
        self.facts.setdefault("entities", {})[source.name] = facts
        if share == 0:
            some = ", ".join(repr(row[0] if len(row) == 1 else row) for row in sorted(wanted)[:3])
            key = ", ".join(source.keys)
            what = f"knows none of the log's {key} ({some}, ...)"
            self.problems.say(("data", "entities", source.name, "key"), key, what, "name the column that both share")

    def _conflicts(self, source: Source, staged: Reader) -> None:
        """Rows of an entity that say something else of a key (and time) than a row before, which ingest quarantines."""
        columns = ", ".join(f"c{i}" for i in range(len(source.columns)))
        key = source.key_cells[0] if len(source.keys) == 1 else f"row({', '.join(source.key_cells)})"
        num, first, of = staged.connection.execute(
            f"WITH good AS (SELECT DISTINCT {columns}, time FROM staged WHERE reason IS NULL), "
            f"twice AS (SELECT {key} AS key, count(*) - 1 AS num FROM good GROUP BY key, time HAVING count(*) > 1) "
            f"SELECT coalesce(sum(num), 0), min(key), (SELECT count(*) FROM staged) FROM twice"
        ).fetchall()[0]
        if num > self.scenario.ingest.max_quarantined_share * of:
            what = f"{num:,} of {of:,} rows are conflicting: other values of the same key before, such as {first!r}"
            remedy = "keep one row of each key, give the entity a time column, or raise ingest.max_quarantined_share"
            self.problems.say(tuple(source.place.split(".")), None, what, remedy)

    def _connect(self, source: Source) -> duckdb.DuckDBPyConnection:
        return self.stack.enter_context(connect(self.scratch, source.zone))

    def _files_of_days(self, source: Source) -> list[Place]:
        """All files of the log; says which partitions are missing."""
        days = self.scenario.data.days
        if not source.is_partitioned:
            wanted = [self.first]
        else:
            last = days.last or days.first
            num = (last - days.first).days + 1
            wanted = [str(d) for d in (days.first + ONE_DAY * i for i in range(num)) if not days.passes_over(d)]
        files: list[Place] = []
        missing: list[tuple[str, str]] = []
        for ds in wanted:
            try:
                files += files_of(self.scenario, source, ds)
            except BadInputError as error:
                missing.append((ds, str(error)))
        # One message of `files_of` names its file; where all are missing the path is wrong, not the days.
        if len(missing) == 1 or len(missing) == len(wanted):
            self.problems.messages.append(missing[0][1])
        elif missing:
            self.problems.say(("data", "days"), None, f"no partition of {some_days([ds for ds, _ in missing])}", NARROW)
        return list(dict.fromkeys(files))

    def _days(self, reader: Reader) -> None:
        """Rows of each day of the log; says which of the scenario's days have none."""
        days = self.scenario.data.days
        num_bytes = sum(Path(file).stat().st_size for file in reader.files)
        if num_bytes > MAX_COUNTED_BYTES:
            what = f"rows by day are not counted, the log has {num_bytes / 2**30:.0f} GiB"
            self.problems.warn(("data", "days"), None, what, "see that each day has rows")
            return
        # All times, not the sample's: a day without rows shows nowhere else before it is run.
        if not (counts := reader.count_days()):
            self.problems.say(
                ("data", "events", "time"), None, "no row has a time", "correct time.column and time.unit"
            )
            return
        first, last = min(counts), max(counts)
        shown = {ds: num for ds, num in counts.items() if ds >= str(days.first)}
        self.facts["log"] = f"{sum(counts.values()):,} rows, {first} to {last}"
        if days.warm_up_from:
            warm_up = (num for ds, num in counts.items() if str(days.warm_up_from) <= ds < str(days.first))
            self.facts["warm_up_rows"] = sum(warm_up)
        self.facts["days"] = {ds: num for ds, num in shown.items() if days.last is None or ds <= str(days.last)}
        if num_other := sum(counts.values()) - sum(self.facts["days"].values()) - self.facts.get("warm_up_rows", 0):
            self.facts["rows_of_no_day"] = num_other
        # Without a last day, days after the log's end may still come; days before its begin never do.
        end = days.last or datetime.date.fromisoformat(max(first, min(last, str(days.first))))
        wanted = [days.first + ONE_DAY * i for i in range((end - days.first).days + 1)]
        empty = [str(day) for day in wanted if not days.passes_over(day) and str(day) not in counts]
        if empty:
            what = f"no rows on {some_days(empty)}; the log has {first} to {last}"
            self.problems.say(("data", "days"), None, what, NARROW)

    def _heads(self, source: Source, unknown: list[str]) -> None:
        """Checks that the first rows of every file of this machine read as declared; of many files, it reads some,
        spread evenly.

        `unknown`: optional columns without a value in the sample. They may begin on a later day, as `optional` says.
        """
        files = self._all_files(source)
        if not files:
            return
        # Spread evenly: the first 400 of a year would miss a column that changed in summer.
        most = MAX_HEADS if source.table.encoding == UTF_8 else MAX_COPIED
        chosen = [files[i * len(files) // most] for i in range(most)] if len(files) > most else files
        if len(chosen) < len(files):
            read = f"{source.name}: read in {len(chosen):,} of {len(files):,} files, spread evenly"
            self.facts["heads"] = f"{self.facts['heads']}; {read}" if "heads" in self.facts else read
        connection, scratch = self._connect(source), self.scratch / f"{source.place}-heads"
        scratch.mkdir(exist_ok=True)  # of its own, as copies are named by the numbers of their files
        reader = Reader(connection, self.scenario, source, [], _ALWAYS)
        try:
            brought = Bringer(connection, self.scenario, source, scratch).bring(chosen, _ALWAYS)
            reader = replace(reader, files=brought)
            reader.stage(HEAD_ROWS)
            found = retyped_columns(reader, self.scenario.ingest.max_quarantined_share) or self._broken_lines(reader)
        except BadInputError as error:
            found = [str(error)]
        check_new_columns(self.problems, source, reader)
        if never := sorted(set(unknown) & set(columns_without_value(reader))) if not found else []:
            what = f"no file has a value for the optional {', '.join(never)} in the rows that were read"
            remedy = "correct the names in the file (`from`), or leave the columns out"
            self.problems.warn((*source.place.split("."), "columns"), None, what, remedy)
        self.problems.messages += [message for message in found if message not in self.problems.messages]

    def _broken_lines(self, reader: Reader) -> list[str]:
        """A message for each file of which too large a share of the lines is broken, by an open quote, say."""
        found = reader.connection.execute(
            "SELECT file, count(*) AS num FROM staged WHERE row < 0 GROUP BY file ORDER BY file"
        ).fetchall()
        messages = []
        for number, num in found:
            of = num + replace(reader, files=[reader.files[number]]).span()[2]
            if num > self.scenario.ingest.max_quarantined_share * of:
                kind = kinds_of(reader, f"row < 0 AND file = {number}", limit=1)[0]
                messages.append(
                    f"{kind.file}: {num:,} of {of:,} lines are malformed: {kind.reason} (first at {kind.place}); "
                    f"{kind.remedy or 'correct these lines, or raise ingest.max_quarantined_share'}"
                )
        return messages

    def _all_files(self, source: Source) -> list[Path]:
        """The files of all days on this machine; where no last day is declared, up to the first day without files."""
        days = self.scenario.data.days
        day, files = days.first, list[Path]()
        while days.last is None or day <= days.last:
            try:
                found = files_of(self.scenario, source, str(day))
            except BadInputError:  # `_files_of_days` says which days have no files
                if days.last is None and not days.passes_over(day):
                    break
                found = []
            files += [file for file in found if isinstance(file, Path)]
            if not source.is_partitioned or source.table.is_elsewhere:
                break
            day += ONE_DAY
        return list(dict.fromkeys(files))

    def _malformed(self, source: Source, staged: Reader) -> list[str]:
        """Rows of the sample that ingest would quarantine; returns the optional columns without a value in it."""
        connection = staged.connection
        num, bad, undated = connection.execute(
            "SELECT count(*), count(reason), count(*) FILTER (time IS NULL) FROM staged"
        ).fetchall()[0]
        if not num:
            return []
        kinds = kinds_of(staged, limit=5)
        if kinds:
            self.facts.setdefault("malformed", {})[source.name] = {kind.reason: kind.num for kind in kinds}
        if undated and source.time and not source.is_partitioned:  # a partition's rows are dated by it
            self.facts.setdefault("undated", {})[source.name] = undated
        if bad > self.scenario.ingest.max_quarantined_share * num:
            shown = "; ".join(f"{kind.reason} ({kind.num:,}; {kind.file}, {kind.place})" for kind in kinds)
            remedy = kinds[0].remedy or "correct the columns' types, or raise ingest.max_quarantined_share"
            self.problems.messages.append(
                f"{self.scenario.place_of(*source.place.split('.'))}: {source.place}: {bad:,} of {num:,} rows are "
                f"malformed: {shown}; {remedy}"
            )
        unknown = columns_without_value(staged)
        required = [name for name in unknown if not source.columns[name].optional]
        if required:
            what = f"the sample of {self.first} has no value for {', '.join(required)}"
            remedy = "correct the names in the file (`from`), or leave the columns out"
            self.problems.warn((*source.place.split("."), "columns"), None, what, remedy)
        return [name for name in unknown if name not in required]

    def _log_columns(self, source: Source) -> dict[str, str]:
        """The names that expressions over the log alone may use, as columns of the staged sample."""
        return {name: f"c{i}" for i, name in enumerate(source.columns)} | {EVENT_TIME: "time"}

    def _sql(self, source: Source, expression: str) -> str:
        """An expression over the log's own columns, as SQL over the staged sample."""
        names, zone = self._log_columns(source), self.scenario.data.events.time.zone
        return to_sql(expression, names.__getitem__, zone=zone, times=time_columns(self.scenario))

    # Entities are read later, and one by one, so nothing here can join them.
    def _label_sql(self, source: Source) -> dict[str, str]:
        """SQL of each label that needs no entity: 0.0, 1.0 or null."""
        names = self._log_columns(source)
        return {
            task: f"CAST(CAST({self._sql(source, expression)} AS BOOLEAN) AS INT)::DOUBLE"
            for task, expression in self.scenario.own_labels.items()
            if columns_of(expression) <= names.keys() and has_sql(expression)
        }

    def _labels(self, source: Source, connection: duckdb.DuckDBPyConnection) -> None:
        """Means of the labels that need no entity."""
        means: dict[str, float | None] = {}
        for task, sql in self._label_sql(source).items():
            mean = connection.execute(f"SELECT avg({sql}) FROM staged WHERE reason IS NULL").fetchall()[0][0]
            means[task] = None if mean is None else round(mean, 6)
            # A warning only: a rare label may have no positive in a sample.
            if mean is None or mean == 0 or (mean == 1 and not self.scenario.join.negative_sampler):
                found = {None: "is unknown", 0: "never holds", 1: "always holds"}[mean]
                what = f"{found} in the sample of {self.first}"
                self.problems.warn(("labels", task), self.scenario.own_labels[task], what, "correct the condition")
        self.facts["labels"] = means

    def _leaks(self, source: Source, connection: duckdb.DuckDBPyConnection) -> None:
        """Features of the log's own columns that alone predict a label; those of entities are judged by `validate`."""
        labels, features = self._label_sql(source), self._feature_sql(source)
        if not labels or not features:
            return
        chosen = [*labels.values(), *(sql for by_part in features.values() for sql in by_part.values())]
        named = ", ".join(f"{sql} AS f{i}" for i, sql in enumerate(chosen))
        frame = connection.execute(f"SELECT {named} FROM staged WHERE reason IS NULL").df()
        truths = {task: frame[f"f{j}"].to_numpy(np.float64, na_value=np.nan) for j, task in enumerate(labels)}
        numbers = itertools.count(len(labels))
        for name, by_part in features.items():
            columns = {part: frame[f"f{next(numbers)}"] for part in by_part}
            for leak in judge(name, columns.pop(_WHOLE, None), truths, columns):
                self._say_leak(replace(leak, enabled=self.scenario.features[name].enabled))

    def _feature_sql(self, source: Source) -> dict[str, dict[str, str]]:
        """SQL of each feature that is read straight from the log's columns, as a whole (a cross as text), and of each
        part of a cross; a cross with an entity's column has its other parts alone."""
        names = self._log_columns(source)
        found: dict[str, dict[str, str]] = {}
        for name, feature in self.scenario.features.items():
            if feature.kind not in ("id", "ids", "number", "cross"):
                continue
            parts = feature.of if feature.kind == "cross" else (feature.of or name,)
            readable = [part for part in parts if columns_of(part) <= names.keys() and has_sql(part)]
            sqls = {part: self._sql(source, part) for part in readable}
            if feature.kind == "cross":
                found[name] = dict(sqls)
                if len(sqls) == len(parts):
                    texts = ", ".join(f"CAST({sql} AS VARCHAR)" for sql in sqls.values())
                    found[name][_WHOLE] = f"concat_ws(chr(31), {texts})"
            elif sqls:
                form = "CAST({} AS DOUBLE)" if feature.kind == "number" else "{}"
                found[name] = {_WHOLE: form.format(*sqls.values())}
        return found

    def _say_leak(self, leak: Leak) -> None:
        say = self.problems.say if leak.severity == "blocking" else self.problems.warn
        what = f"alone predicts label {leak.label} with AUC {leak.auc}, by {leak.way}, in the sample of {self.first}"
        remedy = "if it is known only after the event, name its columns in outcomes; else set enabled: false"
        say(("features", leak.feature), None, what, remedy)
