"""`showattend convert-original`, from a clone."""

from showattend.commands.convert_original import main

if __name__ == "__main__":
    raise SystemExit(main())
