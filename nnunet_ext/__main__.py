"""`python -m nnunet_ext` is `nnx`."""

from nnunet_ext.cli import main

if __name__ == "__main__":
    main()
