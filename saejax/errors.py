"""What a user is meant to read when a command ends before its work is done."""


class InputError(Exception):
    """Something the user gave is wrong: one line with the offender, its value and the remedy.

    The command line prints the line and exits with 2; any other exception is a defect of ours and keeps
    its traceback. Not a `ValueError`, which the parser of the command line would catch and frame.
    """


class Preempted(Exception):
    """The run was told to end, has saved, and goes on with the same command: one line that says so.

    The command line prints the line and exits with 0, as schedulers want it of a job that they will start again.
    """
