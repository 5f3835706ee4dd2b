"""nnU-Net's final validation, resumed instead of begun again: cases that are finished are skipped."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from nnunetv2.paths import nnUNet_raw

from nnunet_ext.errors import Damaged
from nnunet_ext.finish import mean_dice_in, sha256_of
from nnunet_ext.layout import Layout
from nnunet_ext.trainers.power import Power
from nnunet_ext.trainers.results import MISSING, Record, Results, why_not_ours
from nnunet_ext.trainers.stoppable import LAUNCH


@dataclass(frozen=True)
class Todo:
    """What a validation has to do: the cases of the fold, those still to be predicted, and the weights' SHA-256."""

    cases: tuple[str, ...]
    left: tuple[str, ...]
    checkpoint: str | None


class ResumableValidation(Power):
    """Runs nnU-Net's own validation on the cases that have no whole result yet; its metrics cover all of them.

    Results count only when they are known to come from the weights that are validated: `.nnx/validation.json` says
    from which. Those of other weights are moved to `.nnx/previous`, never overwritten. The fold is held meanwhile.
    """

    if TYPE_CHECKING:
        preprocessed_dataset_folder_base: str
        configuration_manager: Any

    _nnx_val_weights: Path | None = None  # the file that has the network's weights
    _nnx_val_in_training = False
    _nnx_val_left: tuple[str, ...] | None = None
    _nnx_val_begun: tuple[int, float] = (0, 0.0)  # how many cases, and when the first

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        super().load_checkpoint(filename_or_checkpoint)
        self._nnx_val_weights = Path(filename_or_checkpoint) if isinstance(filename_or_checkpoint, str) else None

    def run_training(self) -> None:
        self._nnx_val_weights = None if self.disable_checkpointing else self.nnx_checkpoint("final")
        self._nnx_val_in_training = True
        try:
            super().run_training()
        finally:
            self._nnx_val_in_training = False

    def do_split(self) -> tuple[list[str], list[str]]:
        train, val = super().do_split()
        return train, val if self._nnx_val_left is None else [case for case in val if case in self._nnx_val_left]

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        with self._nnx_val_holding_the_fold():
            todo = self._nnx_val_agreed(save_probabilities)
            self._nnx_val_left, self._nnx_val_begun = todo.left, (0, time.monotonic())
            try:
                super().perform_actual_validation(save_probabilities)
            finally:
                self._nnx_val_left = None
            if self.local_rank == 0:
                self._nnx_val_complete(todo)

    def print_to_log_file(self, *words: object, **options: bool) -> None:
        super().print_to_log_file(*words, **options)
        if self._nnx_val_left is not None and self.local_rank == 0 and str(words[0]).startswith("predicting "):
            self._nnx_val_say_how_far(len(self._nnx_val_left))

    def _nnx_val_say_how_far(self, total: int) -> None:
        """In a DDP validation each rank has its share of the cases; rank 0 speaks of its own."""
        share = -(-total // (dist.get_world_size() if self.is_ddp else 1))
        done, since = self._nnx_val_begun
        self._nnx_val_begun = done + 1, since
        case_s = (time.monotonic() - since) / max(1, done)
        left = f", {case_s:.1f} s each, about {case_s * (share - done) / 60:.1f} min left" if done else ""
        self.nnx_say(f"case {done + 1} of {share}{left}")

    def _nnx_val_holding_the_fold(self) -> contextlib.AbstractContextManager[None]:
        """Hold the fold, on rank 0, unless the training that calls us holds it already."""
        return (
            self.nnx_control.lock()
            if self.local_rank == 0 and not self._nnx_val_in_training
            else contextlib.nullcontext()
        )

    def _nnx_val_agreed(self, with_probabilities: bool) -> Todo:
        """Rank 0 decides for all: the others might see results that have just been written."""
        box = [self._nnx_val_decide(with_probabilities) if self.local_rank == 0 else None]
        if self.is_ddp:
            dist.broadcast_object_list(box, src=0)
        if box[0] is None:
            raise AssertionError("rank 0 sent no decision")
        return box[0]

    def _nnx_val_decide(self, with_probabilities: bool) -> Todo:
        results = self._nnx_val_results
        cases = tuple(self.do_split()[1])
        results.check_truth(cases)
        weights = self._nnx_val_weights
        checkpoint = sha256_of(weights) if weights is not None and weights.exists() else None
        troubles = {case: results.trouble(case, with_probabilities) for case in cases}
        if results.exist() and self._nnx_val_set_aside(results, checkpoint, troubles):
            troubles = dict.fromkeys(cases, MISSING)
        Record(checkpoint, {}).write(self._nnx_val_record)
        self._nnx_val_tell(troubles)
        return Todo(cases, tuple(case for case in cases if troubles[case]), checkpoint)

    def _nnx_val_set_aside(self, results: Results, checkpoint: str | None, troubles: Mapping[str, str]) -> bool:
        """Move results away that are not those of the weights to be validated; whether that was needed."""
        record = Record.read(self._nnx_val_record)
        whole = [case for case, trouble in troubles.items() if not trouble]
        final = self.nnx_checkpoint("final")
        is_newer = self._nnx_val_weights == final and results.are_newer_than(final)
        reason = why_not_ours(record, checkpoint, results.changed(whole, record) if record else [], is_newer)
        if reason is None:
            return False
        aside = results.move_aside(troubles, time.strftime("%Y-%m-%d_%H%M%S"))
        self.nnx_say(f"The validation results that were there are kept in {aside}: {reason}.")
        self.nnx_event("validation_moved_aside", to=aside, reason=reason)
        return True

    def _nnx_val_tell(self, troubles: Mapping[str, str]) -> None:
        left = sum(map(bool, troubles.values()))
        self.nnx_say(f"{len(troubles) - left} of {len(troubles)} cases are predicted already, {left} are left.")
        for case, trouble in troubles.items():
            if trouble not in ("", MISSING):
                self.nnx_say(f"{case} is predicted again: {trouble}.")

    def _nnx_val_complete(self, todo: Todo) -> None:
        """The record vouches for the results from here on."""
        results = self._nnx_val_results
        Record(todo.checkpoint, results.digests(todo.cases)).write(self._nnx_val_record)
        facts = {"cases": len(todo.cases), "skipped": len(todo.cases) - len(todo.left), "checkpoint": todo.checkpoint}
        with contextlib.suppress(Damaged):
            mean_dice = mean_dice_in(results.layout.validation_summary(results.run))
            self.nnx_event("validated", **facts, mean_dice=mean_dice, launch=os.environ.get(LAUNCH, ""))

    @property
    def _nnx_val_results(self) -> Results:
        preprocessed, results = Path(self.preprocessed_dataset_folder_base).parent, Path(self.output_folder).parents[2]
        layout = Layout(Path(nnUNet_raw or ""), preprocessed, results)
        stages: Sequence[str] = self.configuration_manager.next_stage_names or ()
        return Results(layout, self.nnx_run, self.plans_manager, self.dataset_json["file_ending"], tuple(stages))

    @property
    def _nnx_val_record(self) -> Path:
        return self._nnx_val_results.layout.validation_record(self.nnx_run)
