"""`showattend evaluate`, from a clone."""

from showattend.commands.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main())
