"""`showattend convert-original`, from a clone."""

import sys

from showattend.commands.convert_original import main

if __name__ == "__main__":
    sys.exit(main())
