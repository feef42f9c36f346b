"""`showattend pack-checkpoint`, from a clone."""

from showattend.commands.pack_checkpoint import main

if __name__ == "__main__":
    raise SystemExit(main())
