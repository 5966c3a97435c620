"""The one exception for mistakes a user can mend: shown as a single line by the command line and the notebooks."""


class UserError(ValueError):
    """Bad input. The message names the value that was given and what is allowed."""


def choose(field: str, value, allowed) -> None:
    """Raise UserError unless `value` is one of `allowed`, proposing the nearest spelling."""
    import difflib

    allowed = list(allowed)
    if value in allowed:
        return
    near = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"{field} {value!r} is unknown: allowed are {', '.join(map(str, allowed))}{hint}")
