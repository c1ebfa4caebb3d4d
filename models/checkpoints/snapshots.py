"""Where a day's training is: written now and then, so that a killed one goes on from there, to the same bits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_jobs.errors import CorruptError, RetryLaterError
from models.checkpoints import checkpoint as checkpoints
from models.checkpoints.tensor_files import read_tensors, write_tensors
from models.ranking.ranker import Ranker

SCORES = "scores.safetensors"
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Position:
    """Rows learned; blocks learned of the day's first part or, once it is judged, of the `rest`."""

    rows: int = 0
    rest: bool = False
    blocks: int = 0


class Snapshots:
    """The newest state in a folder that outlives a killed run; None: none is kept.

    A snapshot is a checkpoint in the middle of a day, with its position and the scores so far. It is written beside the
    one before and moved in by one rename; a process killed at any moment leaves one of them whole.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def save(
        self, ranker: Ranker, position: Position, restored: Mapping[str, Any], scores: Mapping[str, Floats]
    ) -> None:
        """Replaces the snapshot. `restored`: what the parent gave; `scores`: of the rows judged so far."""
        if self.folder is None:
            return
        if ranker.group is not None and not ranker.group.leads:
            checkpoints.save(ranker, None, {})
            return
        number = max(self._numbers(), default=-1) + 1
        scratch = self.folder / "writing"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        statistics = {name: counts_T.tolist() for name, counts_T in ranker.tables.statistics.items()}
        checkpoints.save(
            ranker, scratch, {"position": asdict(position), "restored": restored, "statistics": statistics}
        )
        write_tensors(scratch / SCORES, scores)
        for file in scratch.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        scratch.rename(self.folder / str(number))
        for old in self._numbers():
            if old < number:
                shutil.rmtree(self.folder / str(old), ignore_errors=True)

    def load(self, ranker: Ranker) -> tuple[Position, dict[str, Any], dict[str, Floats]] | None:
        """Fills a fresh ranker; returns its position, what the parent gave and the scores so far.

        None where nothing was noted.
        """
        number = max(self._numbers(), default=-1)
        if ranker.group is not None:
            number = ranker.group.broadcast_number(number)  # another machine may not see the newest yet
        if self.folder is None or number < 0:
            return None
        newest = self.folder / str(number)
        if ranker.group is not None and not newest.is_dir():
            raise RetryLaterError(f"{newest}: the leading machine has it, this one does not see it yet; start it again")
        checkpoints.restore(ranker, newest)
        facts = checkpoints.read_facts(newest)
        try:
            for name, counts in facts["statistics"].items():
                ranker.tables.statistics[name][:] = counts
            scores = {name: tensor.numpy() for name, tensor in read_tensors(newest / SCORES).items()}
            return Position(**facts["position"]), facts["restored"], scores
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(f"{newest}: not a readable snapshot ({error}); delete the folder") from None

    def _numbers(self) -> list[int]:
        if self.folder is None or not self.folder.is_dir():
            return []
        return [int(path.name) for path in self.folder.iterdir() if path.name.isdigit()]
