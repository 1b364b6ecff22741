"""``python -m undoubt``: the command ``undoubt``, if its script is not on the path."""

from undoubt.cli import main

if __name__ == "__main__":
    main()
