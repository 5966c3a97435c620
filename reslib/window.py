"""Loss and errors of the steps between two evaluations."""

from __future__ import annotations

import torch

from .numerics import in_double
from .recipe import Recipe


class Window:
    """Loss and errors of the steps since the last evaluation, kept on the device until they are asked for.

    Of several processes each holds its own share; `close` and `warmup_error` join them.
    """

    def __init__(self, recipe: Recipe, device):
        self.recipe = recipe
        self.losses = torch.zeros(min(recipe.eval_every, recipe.iterations), device=device)
        self.wrong = torch.zeros((), dtype=torch.long, device=device)
        self.wrong_warmup = torch.zeros((), dtype=torch.long, device=device)
        self.filled = 0

    def add(self, loss: torch.Tensor, wrong: torch.Tensor) -> None:
        """Note a step: its loss and its number of wrong answers, both still on the device."""
        self.losses[self.filled] = loss
        self.wrong += wrong
        self.wrong_warmup += wrong
        self.filled += 1

    def close(self, group) -> tuple[float, float]:
        """Mean loss and error rate of the window (running, on augmented images), which starts anew."""
        totals = torch.stack([in_double(self.losses[: self.filled]).sum() / group.world, in_double(self.wrong)])
        group.sum(totals)
        loss, wrong = totals.tolist()
        steps, self.filled = self.filled, 0
        self.wrong.zero_()
        return loss / steps, wrong / (steps * self.recipe.batch_size)

    def non_finite(self, iteration: int, group) -> int | None:
        """The iteration of the first loss since the last evaluation that is not a finite number."""
        bad = (~torch.isfinite(self.losses[: self.filled])).nonzero()
        first = int(bad[0]) if len(bad) else self.filled
        first = -int(group.maximum(-first))
        return iteration - self.filled + first + 1 if first < self.filled else None

    def warmup_error(self, group) -> float:
        """Error rate of the warm-up window, which starts anew."""
        wrong = in_double(self.wrong_warmup).clone().view(1)
        group.sum(wrong)
        self.wrong_warmup.zero_()
        return wrong.item() / (self.recipe.warmup_window * self.recipe.batch_size)

    def state(self) -> dict:
        """What a checkpoint keeps of the window."""
        return {"losses": self.losses[: self.filled].cpu(), "wrong": int(self.wrong), "warm": int(self.wrong_warmup)}

    def load(self, states: list[dict], group) -> None:
        """Take back this process's share; for another number of processes the shares are dealt out anew."""
        if len(states) == group.world:
            losses, wrong, warm = (states[group.rank][key] for key in ("losses", "wrong", "warm"))
        else:
            losses = torch.stack([s["losses"] for s in states]).mean(0)
            wrong, warm = (0 if group.rank else sum(s[key] for s in states) for key in ("wrong", "warm"))
        self.filled = len(losses)
        self.losses[: self.filled] = losses
        self.wrong.fill_(wrong)
        self.wrong_warmup.fill_(warm)
