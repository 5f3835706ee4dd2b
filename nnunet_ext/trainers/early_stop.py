"""Early stopping on the EMA pseudo Dice: target, plateau, NaN losses, budget, with a cooldown of the learning rate."""

from __future__ import annotations

from typing import Any

from nnunet_ext.stopping import Policy, Verdict
from nnunet_ext.trainers.cooldown import Cooldown
from nnunet_ext.trainers.stoppable import Stoppable


class EarlyStop(Stoppable):
    """Stops when the policy of the settings says so; see nnunet_ext/stopping.py for the rules.

    With `cooldown` K, a target or plateau does not end the training at once: the learning rate is annealed to 0 over
    K more epochs first, because nnU-Net's poly schedule is meant to be completed. A cooldown that has begun goes on
    to its end, also when the EMA dips below the target meanwhile.
    """

    def nnx_policy(self) -> Policy:
        return self.nnx_training.policy

    def nnx_consider(self, found: Verdict) -> Verdict:
        begun = self.nnx_state.get("cooldown")
        if found.epoch is None or found.kind not in (None, "target", "plateau"):
            return found
        if begun is None:
            if not found.stop or self.nnx_training.cooldown == 0:
                return found
            begun = self._nnx_begin_cooldown(found)
        if found.epoch + 1 < begun["start"] + begun["epochs"]:
            return Verdict(False, None, found.epoch, "cooling down")
        reason = f"{begun['reason']}; cooled down for {begun['epochs']} epochs"
        return Verdict(True, begun["kind"], found.epoch, reason, begun["numbers"])

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        super().load_checkpoint(filename_or_checkpoint)
        begun = self.nnx_state.get("cooldown")
        if begun is not None and begun["asked"] != self._nnx_asked_for():
            self.nnx_forget("cooldown")  # another target, say: judge anew
        self._nnx_cool_down()

    def _nnx_begin_cooldown(self, found: Verdict) -> dict[str, Any]:
        epochs = self.nnx_training.cooldown
        begun = {
            "kind": found.kind,
            "reason": found.reason,
            "numbers": dict(found.numbers),
            "asked": self._nnx_asked_for(),
            "start": self.current_epoch + 1,
            "epochs": epochs,
            "rate": self.optimizer.param_groups[0]["lr"],
        }
        self.nnx_store(cooldown=begun)
        self.nnx_say(f"{found.reason}. Cooling down for {epochs} epochs.")
        self.nnx_event("cooldown", **begun)
        return begun

    def _nnx_asked_for(self) -> list[float | int | None]:
        training = self.nnx_training
        return [training.cooldown, training.policy.target, training.policy.patience]

    def on_train_epoch_start(self) -> None:
        self._nnx_cool_down()
        super().on_train_epoch_start()

    def _nnx_cool_down(self) -> None:
        begun = self.nnx_state.get("cooldown")
        if begun is not None and not isinstance(self.lr_scheduler, Cooldown):
            self.lr_scheduler = Cooldown(self.lr_scheduler, begun["rate"], begun["start"], begun["epochs"])
