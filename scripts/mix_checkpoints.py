"""`showattend mix-checkpoints`, from a clone."""

import sys

from showattend.commands.mix_checkpoints import main

if __name__ == "__main__":
    sys.exit(main())
