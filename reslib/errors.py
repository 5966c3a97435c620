"""The one exception for mistakes a user can mend: shown as a single line by the command line and the notebooks."""

import sys


class UserError(ValueError):
    """Bad input. The message names the value that was given and what is allowed."""


def shown(value, limit: int = 120) -> str:
    """`repr(value)` for a message: never longer than `limit`, never failing."""
    try:
        text = repr(value)
    except Exception:  # an int of more than 4300 digits has no repr
        text = f"<a {type(value).__name__} too large to print>"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def choose(field: str, value, allowed) -> None:
    """Raise UserError unless `value` is one of `allowed`, proposing the nearest spelling."""
    import difflib

    allowed = list(allowed)
    if value in allowed:
        return
    near = difflib.get_close_matches(shown(value).strip("'"), [str(a) for a in allowed], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"{field} {shown(value)} is unknown: allowed are {', '.join(map(str, allowed))}{hint}")


def first_line(error: BaseException) -> str:
    """The first line of what an error says, its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def one_line(error: BaseException) -> str:
    """All that an error says, in a line; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def reason(error: BaseException) -> str:
    """Kind and words of an error in a line of a record: 200 characters at most."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def tell_once(text: str) -> None:
    """On standard error, the same line only once per process: the records, say, are read for every figure."""
    if text not in _told:
        _told.add(text)
        print(text, file=sys.stderr, flush=True)


_told: set[str] = set()
