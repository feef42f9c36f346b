"""`showattend train`, from a clone."""

from showattend.commands.train import main

if __name__ == "__main__":
    raise SystemExit(main())
