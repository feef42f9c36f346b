"""`showattend average-checkpoints`, from a clone."""

from showattend.commands.average_checkpoints import main

if __name__ == "__main__":
    raise SystemExit(main())
