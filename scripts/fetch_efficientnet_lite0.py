"""`showattend fetch-efficientnet-lite0`, from a clone."""

from showattend.commands.fetch_efficientnet_lite0 import main

if __name__ == "__main__":
    raise SystemExit(main())
