"""`showattend fetch-original-resnet50`, from a clone."""

from showattend.commands.fetch_original_resnet50 import main

if __name__ == "__main__":
    raise SystemExit(main())
