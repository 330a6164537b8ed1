"""`python -m mario.cli`: the same as `mario`."""

from mario.cli.main import main

if __name__ == "__main__":
    main()
