"""The command `showattend` under the name of the distribution: `accelerate launch -m modeling_showattend train ...`."""

from showattend.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main())
