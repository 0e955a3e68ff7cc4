"""The one error that is about the user's input."""


class InputError(ValueError):
    """Something given by the user cannot be used: the message names the file, the line and the value.

    The command line prints it as one line and exits with status 2; code gets an ordinary `ValueError`.
    """
