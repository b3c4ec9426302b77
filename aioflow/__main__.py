"""`python -m aioflow`."""

import sys

if __name__ == "__main__":
    try:
        from aioflow.cli import main

        main()
    except KeyboardInterrupt:  # while modules are still being imported
        sys.exit(130)
