"""The two ways a command ends badly. Both carry one message for the user: the thing and both values."""


class RaylaneError(Exception):
    """Base of the errors meant for the user; the command line prints the message without a traceback."""

    exit_code = 1


class UsageError(RaylaneError):
    """The input is wrong (a config key, a file, an option). Nothing was done. Exit status 2."""

    exit_code = 2


class FailedError(RaylaneError):
    """The input was fine and the work failed (an engine did not start, a port was taken). Exit status 1."""

    exit_code = 1
