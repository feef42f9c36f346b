"""`showattend visualize-attention`, from a clone."""

from showattend.commands.visualize_attention import main

if __name__ == "__main__":
    raise SystemExit(main())
