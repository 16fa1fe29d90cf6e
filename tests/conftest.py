"""For all tests: Ctrl-C reaches the processes that tests start, also where the shell that runs pytest ignores it."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a background job of a shell; children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
