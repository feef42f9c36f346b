"""`showattend evaluate-attention`, from a clone."""

from showattend.commands.evaluate_attention import main

if __name__ == "__main__":
    raise SystemExit(main())
