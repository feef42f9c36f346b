"""`showattend caption-dataset`, from a clone."""

from showattend.commands.caption_dataset import main

if __name__ == "__main__":
    raise SystemExit(main())
