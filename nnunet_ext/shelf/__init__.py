"""The folder `nnUNet_extTrainer` points to: nothing here but re-exports."""
