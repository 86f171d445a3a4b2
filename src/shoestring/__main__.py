"""`python -m shoestring`: the command line without its script, which is what subprocesses and tests use."""

from shoestring.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
