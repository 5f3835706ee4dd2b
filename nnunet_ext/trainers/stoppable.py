"""How a training is left before its last epoch: judged once per epoch, paused or finished, with its own exit code."""

from __future__ import annotations

import contextlib
import io
import os
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch.distributed as dist

from nnunet_ext.errors import Exit, StopTraining
from nnunet_ext.promote import newest_checkpoint, promote
from nnunet_ext.stopping import Policy, Verdict, verdict
from nnunet_ext.trainers.power import Power

LAUNCH = "NNX_LAUNCH"  # the environment variable that ties an event to the launcher that waits for it


@dataclass(frozen=True)
class Asked:
    """Somebody asked to stop: by a signal or a request file."""

    mode: Literal["epoch", "now"]
    action: Literal["pause", "finish"]
    reason: str
    exit_code: Exit


@dataclass(frozen=True)
class Stop:
    """The decision to stop, the same on every rank."""

    kind: str
    action: Literal["pause", "finish"]
    epoch: int  # the last completed one
    reason: str
    numbers: dict[str, Any]
    exit_code: int
    mid_epoch: bool = False


class Stoppable(Power):
    """Judges after each epoch, before nnU-Net saves anything, and leaves the loop by an exception after the epoch's
    last line. The rules come from EarlyStop (`nnx_policy`), the requests from GracefulStop (`nnx_asked`).

    PAUSE keeps checkpoint_latest and ends the process; FINISH is nnU-Net's own `on_train_end` (checkpoint_final) and
    its validation. Both end with the exit code of their cause.
    """

    _nnx_stop: Stop | None = None

    def nnx_policy(self) -> Policy:
        """The rules in force; without EarlyStop none."""
        return Policy()

    def nnx_asked(self) -> Asked | None:
        """A request that waits; without GracefulStop none."""
        return None

    def nnx_consider(self, found: Verdict) -> Verdict:
        """A last word on the verdict after an epoch, on rank 0."""
        return found

    def run_training(self) -> None:
        with self._nnx_hold_the_fold():
            self.nnx_remember_settings()
            try:
                super().run_training()
                self.nnx_event("trained", epoch=self.current_epoch)
            except StopTraining:
                self._nnx_leave()

    def on_train_start(self) -> None:
        if self.current_epoch > 0:  # a resumed training that has reached its end trains no further epoch
            self._nnx_judge()
            if self._nnx_stop is not None:
                raise StopTraining
        self.nnx_forget("stopped")
        super().on_train_start()
        self.nnx_event("started", epoch=self.current_epoch, num_epochs=self.num_epochs, device=str(self.device))

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        super().on_validation_epoch_end(val_outputs)
        self._nnx_judge()

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        if self._nnx_stop is not None:
            raise StopTraining

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        super().perform_actual_validation(save_probabilities)
        if self._nnx_stop is not None:
            self._nnx_exit(self._nnx_stop)

    def nnx_stop_now(self, asked: Asked) -> None:
        """Leave in the middle of an epoch: what it has done so far is dropped. Before the first epoch's end there is
        nothing to finish."""
        action = asked.action if self.current_epoch > 0 else "pause"
        self._nnx_stop = Stop(
            "request", action, self.current_epoch - 1, asked.reason, {}, int(asked.exit_code), mid_epoch=True
        )
        raise StopTraining

    def nnx_leave_before_validation(self, asked: Asked) -> None:
        """End the process with checkpoint_final written and its validation not begun; `--c` goes on with that."""
        reason = f"{asked.reason}, before the validation"
        self.nnx_say(f"Stopping: {reason}.")
        self._nnx_exit(Stop("request", "pause", self.current_epoch - 1, reason, {}, int(asked.exit_code)))

    def _nnx_judge(self) -> None:
        """Rank 0 decides, every rank obeys, and the decision lies in the state before any checkpoint is written."""
        stop = self._nnx_decide() if self.local_rank == 0 else None
        if self.is_ddp:
            box = [stop]
            dist.broadcast_object_list(box, src=0)
            stop = box[0]
        self._nnx_stop = stop
        if stop is not None:
            self.nnx_store(stopped={**stop.__dict__, "at": time.time()})

    def _nnx_decide(self) -> Stop | None:
        asked = self.nnx_asked()
        found = self.nnx_consider(
            verdict(
                self.nnx_history,
                self.nnx_policy(),
                request=None if asked is None else asked.reason,
                now=time.time(),
                num_epochs=self.num_epochs,
            )
        )
        if found.kind is None or found.epoch is None:
            return None
        if found.kind == "request" and asked is not None:
            return Stop(found.kind, asked.action, found.epoch, found.reason, {}, int(asked.exit_code))
        action: Literal["pause", "finish"] = "pause" if found.kind == "nan" else "finish"
        return Stop(found.kind, action, found.epoch, found.reason, dict(found.numbers), int(found.exit_code))

    def _nnx_leave(self) -> None:
        stop = self._nnx_stop
        if stop is None:
            raise AssertionError("StopTraining was raised without a decision")
        self.nnx_say(f"Stopping ({stop.action}): {stop.reason}.")
        if stop.action == "pause" or stop.mid_epoch:
            self.nnx_keep(stop.mid_epoch or stop.kind == "nan")
        if stop.action == "pause":
            self._nnx_exit(stop)
        if stop.mid_epoch:
            self._nnx_finish_at_last_completed(stop)
        else:
            self.on_train_end()
        self._nnx_record(stop)

    def _nnx_finish_at_last_completed(self, stop: Stop) -> None:
        """checkpoint_final as it would have been at the end of the last completed epoch, and that network validated."""
        final = self.nnx_checkpoint("final")
        if self.local_rank == 0:
            newest = newest_checkpoint(final.parent).path  # not always latest: the run may have gone on from its best
            if newest != final:
                promote(newest, final)
            self.nnx_checkpoint("latest").unlink(missing_ok=True)
        if self.is_ddp:
            dist.barrier()
        self.load_checkpoint(str(final))

    def _nnx_shut_down_loaders(self) -> None:
        """End the augmentation workers, as nnU-Net's on_train_end does; the thread that fetches from them may complain
        that they are gone."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for loader in (self.dataloader_train, self.dataloader_val):
                finish = getattr(loader, "_finish", None)
                if finish is not None:
                    finish()

    def _nnx_record(self, stop: Stop) -> None:
        self.nnx_event("stopped", **stop.__dict__, launch=os.environ.get(LAUNCH, ""))

    def _nnx_exit(self, stop: Stop) -> None:
        """End this process with the stop's code. The ranks of a DDP training end with 0, because torch ends all
        others by force when one of them ends with another code; their launcher reads the code from the event."""
        if stop.action == "pause":
            self._nnx_record(stop)
        if self.is_ddp:
            dist.barrier()
            dist.destroy_process_group()
            raise SystemExit(0)
        raise SystemExit(stop.exit_code)

    def _nnx_hold_the_fold(self) -> contextlib.AbstractContextManager[None]:
        return self.nnx_control.lock() if self.local_rank == 0 else contextlib.nullcontext()
