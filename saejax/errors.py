"""The one error a user is meant to read."""


class InputError(Exception):
    """Something the user gave is wrong: one line with the offender, its value and the remedy.

    The command line prints the line and exits with 2; any other exception is a defect of ours and keeps
    its traceback. Not a `ValueError`, which the parser of the command line would catch and frame.
    """
