"""`showattend prune-tokenizer`, from a clone."""

from showattend.commands.prune_tokenizer import main

if __name__ == "__main__":
    raise SystemExit(main())
