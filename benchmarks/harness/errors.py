"""The error of input that cannot be used: every command ends with its text and code 2."""


class InputError(ValueError):
    """A file or folder is missing, damaged or of another run; the text says what to do."""
