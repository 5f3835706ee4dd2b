"""Trainer classes for plain `nnUNetv2_train -tr NAME`: point nnUNet_extTrainer at this file's folder."""

from nnunet_ext.trainers.classes import nnUNetTrainerEMAStop, nnUNetTrainerMemoryCare, nnUNetTrainerNNX

__all__ = ["nnUNetTrainerEMAStop", "nnUNetTrainerMemoryCare", "nnUNetTrainerNNX"]
