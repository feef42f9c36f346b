"""`showattend app`, from a clone."""

from showattend.commands.app import main

if __name__ == "__main__":
    raise SystemExit(main())
