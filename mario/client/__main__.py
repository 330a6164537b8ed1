"""`python -m mario.client`: play episodes against a service."""

import sys

from mario.client.client import main

if __name__ == "__main__":
    sys.exit(main())
