"""`shoestring`, and `python -m shoestring`: the command line.

Until it has been imported and listens, Ctrl-C ends the process without a word.
"""

import signal


def main() -> int:
    """Run the command line of this process, and return its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from shoestring.cli.main import main

    return main()


if __name__ == "__main__":
    raise SystemExit(main())
