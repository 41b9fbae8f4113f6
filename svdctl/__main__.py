"""`python -m svdctl`."""

from svdctl.cli.main import main

if __name__ == "__main__":
    main()
