"""`python -m stream.cli`: the command line without the installed script."""

from stream.cli.root import main

if __name__ == "__main__":
    main()
