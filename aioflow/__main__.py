"""`python -m aioflow`."""

from aioflow.cli import main

if __name__ == "__main__":
    main()
