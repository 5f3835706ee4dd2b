"""A progress bar for the running epoch, on a terminal only."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from nnunet_ext.trainers.power import Power


class Progress(Power):
    """Shows the iterations of the running epoch, their rate and the time left, on stderr when that is a terminal."""

    _nnx_bar: Any = None

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.local_rank == 0:
            name = f"Epoch {self.current_epoch} of {self.num_epochs}"
            self._nnx_bar = tqdm(total=self.num_iterations_per_epoch, desc=name, unit="it", leave=False, disable=None)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        result = super().train_step(batch)
        if self._nnx_bar is not None:
            self._nnx_bar.set_postfix(loss=f"{float(result['loss']):.3f}", refresh=False)
            self._nnx_bar.update()
            if self._nnx_bar.n >= self._nnx_bar.total:
                self._nnx_bar.close()  # before nnU-Net prints the epoch's lines
        return result

    def run_training(self) -> None:
        try:
            super().run_training()
        finally:
            if self._nnx_bar is not None:
                self._nnx_bar.close()
