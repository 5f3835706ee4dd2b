"""A run's fold on the disk, as tests look at it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_ext.checkpoint import Checkpoint, whole
from nnunet_ext.control import Control
from nnunet_ext.layout import Layout
from nnunet_ext.promote import newest_checkpoint
from nnunet_ext.run import Run


class Fold:
    """The files of `run` in `layout`."""

    layout: Layout[Path]
    run: Run

    @property
    def folder(self) -> Path:
        return self.layout.fold_folder(self.run)

    @property
    def control(self) -> Control:
        return Control(self.layout.control_folder(self.run))

    @property
    def epoch(self) -> int:
        """Completed epochs in the newest checkpoint, 0 without any; every checkpoint must be whole and consistent."""
        checkpoints = list(self.folder.glob("*.pth"))
        assert [problem for problem in map(whole, checkpoints) if problem is not None] == []
        if not checkpoints:
            return 0
        newest = newest_checkpoint(self.folder)
        assert newest.inconsistency() is None
        return newest.current_epoch

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.control.events() if event["event"] == kind]

    def facts(self, kind: str) -> Checkpoint:
        return Checkpoint.read(self.layout.checkpoint(self.run, kind))
