"""Where the `raylane` command begins. It imports next to nothing, so that Ctrl-C is quiet from here on."""

import signal


def main() -> None:
    """Run the command line. Exit status 0: done, 1: failed, 2: wrong input, 130: interrupted."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # it is in background jobs
        # Until the command begins: imports take long, and an interrupt that is raised in one may crash Python.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from raylane.cli.app import build_app, run

    run(build_app())


if __name__ == "__main__":
    main()
