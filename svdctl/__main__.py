"""`python -m svdctl`."""

from svdctl.cli.app import main

if __name__ == "__main__":
    main()
