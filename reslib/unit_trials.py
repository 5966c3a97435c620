"""Whether a run computes its units otherwise (fused_norm.py, reslib/tiles): as begun, as asked for, or by a trial."""

from __future__ import annotations

from . import trials
from .errors import first_line
from .fused_norm import FusedLoss
from .passes import Passes, difference, sound
from .tune import LONG, MARGIN, Choice

ROUNDS = 9  # turns of both ways of a whole pass: what is gained can be a twentieth, which fewer could not tell


def choose(
    kind: type[FusedLoss], step, chosen: Choice, batch, left: int, limit=None, before=None, say=print
) -> FusedLoss | None:
    """A step's loss with units computed otherwise; None where the run goes on without.

    kind: made from the step's loss, with `field` (its name in tune.Choice and in records), `table` (of tune.TRIALS),
    `beside` (what else is done in a pass, for the name of a trial), `refused` (how a message begins), `taken` (units
    computed so up to now) and unavailable(step) -> why it cannot be, empty if it can.
    The other arguments are those of compilation.accelerate; the step is as it would train without.
    """
    asked, begun = getattr(chosen, kind.field), bool(before and before.get(kind.field))
    sure = begun or bool(asked)
    if asked is False or chosen.compile or (not sure and (before or left < LONG)):
        return None
    if reason := kind.unavailable(step):
        if sure:
            say(f"{kind.refused}: {reason}")
        return None
    x, y = batch()
    passes = Passes(step, x[: len(x) // step.parts], y[: len(y) // step.parts])
    loss = kind(step.loss)
    if not sure and limit is not None and limit < 10 * ROUNDS * passes.seconds(step.loss):
        return None
    try:
        theirs = passes.run(loss)
    except MemoryError as error:
        say(f"{kind.refused}: {first_line(error)}")
        return None
    if not loss.taken or begun:  # it was judged then
        return loss if loss.taken else None
    mine = passes.run(step.loss)
    if not sound(passes, mine, theirs):
        say(f"{kind.refused}: loss or gradient would be off by {100 * difference(mine, theirs):.1f}%")
        return None
    return loss if sure or _known_to_win(passes, loss, chosen) else None


def _known_to_win(passes: Passes, loss: FusedLoss, chosen: Choice) -> bool:
    """Whether passes with such units take less time, tried once per machine, network and what else is done."""
    key = trials.network_key(passes.step, passes.x, chosen) + loss.beside
    return trials.remembered(loss.table, key, lambda: passes.gain(loss, ROUNDS) > MARGIN)
