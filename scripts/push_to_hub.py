"""`showattend push-to-hub`, from a clone."""

import sys

from showattend.commands.push_to_hub import main

if __name__ == "__main__":
    sys.exit(main())
