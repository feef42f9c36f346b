"""`showattend caption`, from a clone."""

from showattend.commands.caption import main

if __name__ == "__main__":
    raise SystemExit(main())
