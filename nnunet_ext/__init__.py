"""What an nnU-Net training run is, and how nnU-Net is extended: the nouns every other part of nnx stands on."""

__version__ = "0.1.0"
