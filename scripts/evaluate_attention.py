"""`showattend evaluate-attention`, from a clone."""

import sys

from showattend.commands.evaluate_attention import main

if __name__ == "__main__":
    sys.exit(main())
