"""`showattend pack-checkpoint`, from a clone."""

import sys

from showattend.commands.pack_checkpoint import main

if __name__ == "__main__":
    sys.exit(main())
