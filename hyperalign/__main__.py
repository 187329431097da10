"""`python -m hyperalign` is `hyperalign`."""

from hyperalign.cli import main

if __name__ == "__main__":
    main()
