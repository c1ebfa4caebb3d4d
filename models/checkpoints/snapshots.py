"""Snapshots in the middle of a day's training, from which a killed run continues to the same bits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

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
    """Rows learned so far; blocks learned of the day's first part or, if `in_holdout`, of the holdout."""

    rows: int = 0
    in_holdout: bool = False
    blocks: int = 0


class Snapshots:
    """The newest snapshot in a folder that is kept when a run is killed. None: no snapshots are written.

    A snapshot is a checkpoint in the middle of a day, with its position and the scores so far. It is written beside the
    previous one and moved into place by one rename, so that one of them is complete at any moment.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def save(
        self, ranker: Ranker, position: Position, restored: checkpoints.Restored, scores: Mapping[str, Floats]
    ) -> None:
        """Replaces the snapshot. `restored`: parts restored from the parent; `scores`: of the rows scored so far."""
        if self.folder is None:
            return
        if ranker.group is not None and not ranker.group.is_leader:
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
        # Before the rename, so that a crash of the machine leaves no snapshot whose bytes are missing.
        for file in scratch.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        scratch.rename(self.folder / str(number))
        # Only now: until the rename the older one was the newest that is complete.
        for old in self._numbers():
            if old < number:
                shutil.rmtree(self.folder / str(old), ignore_errors=True)

    def load(self, ranker: Ranker) -> tuple[Position, checkpoints.Restored, dict[str, Floats]] | None:
        """Restores a fresh ranker. Returns its position, the parts restored from the parent, and the scores so far.

        Returns None if no snapshot exists.
        """
        number = max(self._numbers(), default=-1)
        if ranker.group is not None:
            number = ranker.group.broadcast_number(number)  # on a shared disk another node may not see the newest yet
        if self.folder is None or number < 0:
            return None
        newest = self.folder / str(number)
        if ranker.group is not None and not newest.is_dir():
            raise RetryLaterError(f"{newest}: node 0 has this snapshot, this node does not see it yet; start it again")
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
