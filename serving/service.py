"""The part that HTTP and gRPC have in common: the release that serves, limits, and which requests are refused.

A worker is one process with one thread for requests: a request is computed where it is read.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from feature_jobs.errors import BadInputError, CorruptError, RecloopError
from serving.metrics import Metrics
from serving.protocol import Answer, Asked
from serving.release import ITEMS, USER, Loaded
from serving.turns import RETRY_S, RefusedError, Turns

T = TypeVar("T")
NAME, EXTENSIONS = "recloop", ("binary_tensor_data",)
_IDS = "INT64 or BYTES"


@dataclass(frozen=True)
class Limits:
    """Limits of a request, and of those that wait.

    Bytes of its body and of its head, seconds in which it must have come, and items. `wait_s`: one that would wait
    longer for those before it is refused at once. `bodies`: bytes of all bodies that have come in part. `connections`:
    those of HTTP of a worker.
    """

    body: int = 16 << 20
    head: int = 16 << 10
    items: int = 5_000
    read_s: float = 10.0
    wait_s: float = 0.05
    bodies: int = 256 << 20
    connections: int = 4_096


@dataclass(frozen=True)
class TensorMetadata:
    """An input or an output, as the protocol describes it."""

    name: str
    datatype: str
    shape: tuple[int, ...] = (-1,)


@dataclass(frozen=True)
class ModelMetadata:
    """A model, as the protocol describes it."""

    name: str
    versions: tuple[str, ...]
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    platform: str = NAME


class Service:
    """Answers requests with the release that serves. `current` is None before the first one is loaded."""

    def __init__(self, model: str, limits: Limits | None = None, metrics: Metrics | None = None) -> None:
        self.model, self.limits, self.metrics = model, limits or Limits(), metrics or Metrics()
        self.current: Loaded | None = None
        self.draining = False
        self._refused_release, self._warning = "", ""
        self._turns = Turns()
        self._started, self._requests, self._refused = time.time(), 0, 0

    @property
    def is_ready(self) -> bool:
        """Says if it takes requests."""
        return self.current is not None and not self.draining

    def swap(self, loaded: Loaded) -> Loaded | None:
        """Lets a release serve from the next request on; returns the one before."""
        former, self.current, self._refused_release = self.current, loaded, ""
        self.metrics.swapped(loaded, alarm=self.alarm is not None)
        return former

    @property
    def alarm(self) -> str | None:
        """The reason why the newest release does not serve, None where it does."""
        return self._refused_release or self._warning or None

    def refuse(self, version: str) -> None:
        """Notes that a release does not serve. The reason names files, and so is only in the log."""
        self._refused_release = f"version {version} does not serve; see the log of the server"
        self.metrics.refused()

    def warn(self, alarm: str | None) -> None:
        """Raises an alarm of the server, or ends it."""
        self._warning = alarm or ""
        self.metrics.alarm.set(self.alarm is not None)

    def serving(self, name: str, version: str | None = None) -> Loaded:
        """The release of a model's name, and of a version where a request names one. Raises RefusedError."""
        if name != self.model:
            raise RefusedError(404, f"the model {name[:80]!r} is not here; this server has {self.model}")
        if self.current is None:
            raise RefusedError(503, "no version is loaded yet; try again", RETRY_S)
        if version and version != (serves := self.current.facts.version):
            raise RefusedError(404, f"version {version[:40]!r} does not serve; version {serves} of {name} does")
        return self.current

    async def infer(
        self,
        serving: Loaded,
        way: str,
        read: Callable[[int], Asked],
        write: Callable[[Asked, Answer], T],
        patience_s: float = math.inf,
    ) -> T:
        """Reads, answers and writes a request: `read` takes the most items. Raises RefusedError."""

        def work() -> T:
            times = [time.perf_counter()]
            asked = read(self.limits.items)
            times.append(time.perf_counter())
            answer = serving.answer(asked, time.time_ns() // 1_000)
            times.append(time.perf_counter())
            content = write(asked, answer)
            times.append(time.perf_counter())
            self.metrics.answered(answer, times, len(asked.inputs.get(ITEMS, ())))
            return content

        return await self.run(serving, way, work, patience_s)

    async def run(self, serving: Loaded, way: str, work: Callable[[], T], patience_s: float = math.inf) -> T:
        """Does the work of a request in its turn. `way` is how it came, `patience_s` how long its client waits.

        Raises RefusedError: at once where it would wait too long.
        """
        status = 200
        self.metrics.in_flight.inc()
        try:
            await self._turns.take(min(self.limits.wait_s, patience_s))
            try:
                return work()
            finally:
                self._turns.end()
        except Exception as error:
            refused = self.refusal(error)
            status = refused.status
            raise refused from None
        finally:
            self.metrics.in_flight.dec()
            self.metrics.ended(serving.facts.version, way, status)
            self._requests += status == 200
            self._refused += status != 200

    def refusal(self, error: Exception) -> RefusedError:
        """The part of an error that a client may know: nothing of where files of this machine lie."""
        match error:
            case RefusedError():
                return error
            case BadInputError() if not isinstance(error, CorruptError):
                return RefusedError(400, self._without_places(str(error)))
            case RecloopError():
                logging.getLogger(__name__).error("%s", error)
                return RefusedError(503, "the server can't answer now; try again", RETRY_S)
        logging.getLogger(__name__).exception("a request failed", exc_info=error)
        return RefusedError(500, "the server has failed; its log says why")

    def _without_places(self, text: str) -> str:
        if self.current is None:
            return text
        facts, file = self.current.facts, self.current.scenario.file
        text = text.removeprefix(f"{file}: ")
        for place in (facts.export, facts.online, str(file), str(file.parent)):
            text = text.replace(place, Path(place).name)
        return text

    def metadata(self, serving: Loaded) -> ModelMetadata:
        """The model's inputs and outputs: ids, or features by name."""
        features = [TensorMetadata(name, str(type_)) for name, type_ in serving.columns.items()]
        outputs = [TensorMetadata(task, "FP32") for task in serving.tasks]
        inputs = [TensorMetadata(USER, _IDS, (1,)), TensorMetadata(ITEMS, _IDS), *features]
        return ModelMetadata(self.model, (serving.facts.version,), inputs, outputs)

    def status(self) -> Mapping[str, Any]:
        """The facts that the page shows."""
        serving = self.current
        return {
            "model": self.model,
            "version": serving and serving.facts.version,
            "learned_up_to": serving and serving.facts.ds,
            "features_from": serving and serving.begin.isoformat(),
            "checkpoint": serving and serving.facts.checkpoint,
            "tasks": list(serving.tasks) if serving else [],
            "example": serving and dict(zip((USER, ITEMS), serving.example, strict=True)),
            "alarm": self.alarm,
            "worker": {
                "up_s": round(time.time() - self._started, 1),
                "requests": self._requests,
                "refused": self._refused,
                "mean_ms": round(1e3 * self._turns.mean_s, 3) if self._requests else None,
            },
        }
