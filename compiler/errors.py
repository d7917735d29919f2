"""The one error type of everything a user can cause, and what errors of others say."""

import errno


class NncError(Exception):
    """A user's mistake: one line that says the place first, and a hint on how to mend it.

    The command line prints both and exits with 1. A traceback is a bug in nnc.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        message = message.replace("\n", " ")  # a name in a model may hold any character
        super().__init__(message)
        self.message = message
        self.hint = hint


def reason(error: Exception) -> str:
    """What an error of another library says, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def system_reason(error: OSError) -> str:
    """'no space left on device'."""
    if error.errno == errno.EFBIG:
        return "the file is larger than this system allows"
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]
