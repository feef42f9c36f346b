"""`showattend prune-tokenizer`, from a clone."""

import sys

from showattend.commands.prune_tokenizer import main

if __name__ == "__main__":
    sys.exit(main())
