"""What calls cost, and a ceiling that is never passed: prices, and the guard that every attempt goes through."""

import asyncio
from dataclasses import dataclass

from codes.common.chat_replies import RunStopped


@dataclass(frozen=True)
class Prices:
    """In any currency, per million tokens."""

    prompt: float
    completion: float

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


class Spending:
    """The tokens that one output has cost, over all of its runs, and whether another attempt may start.

    With ``max_cost`` an attempt starts only if all that was spent, what the attempts under way may cost at most, and
    what it may cost itself stay within it. Belongs to one event loop at a time.
    """

    def __init__(self, prices: Prices | None = None, max_cost: float | None = None):
        self.prices, self.max_cost = prices, max_cost
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._reserved = 0.0
        self._waiting: list[asyncio.Future] = []

    @property
    def cost(self) -> float | None:
        """Of all tokens counted so far; None without prices."""
        return None if self.prices is None else self.prices.cost(self.prompt_tokens, self.completion_tokens)

    def count(self, record: dict) -> None:
        """Add the tokens of an outcome in a journal."""
        self.prompt_tokens += record.get("prompt_tokens", 0)
        self.completion_tokens += record.get("completion_tokens", 0)

    async def reserve(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Wait until an attempt that may cost this much can start. Raises RunStopped where it never can.

        What it returns is given to ``settle`` when the attempt has ended.
        """
        if self.max_cost is None:
            return 0.0
        most = self.prices.cost(prompt_tokens, completion_tokens)
        while self.cost + self._reserved + most > self.max_cost * (1 + 1e-12):
            if not self._reserved:
                raise RunStopped(
                    f"--max_cost {self.max_cost:g}: {self.cost:.6g} is spent, and the next call may cost {most:.2g}; "
                    "run the same command with a higher one to continue"
                )
            change = asyncio.get_running_loop().create_future()
            self._waiting.append(change)
            await change
        self._reserved += most
        return most

    def settle(self, reserved: float, prompt_tokens: int, completion_tokens: int) -> None:
        """An attempt has ended and used these tokens."""
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        if self.max_cost is None:
            return
        self._reserved -= reserved
        if self._reserved < 1e-12 * self.max_cost:
            self._reserved = 0.0  # what rounding left
        waiting, self._waiting = self._waiting, []
        for change in waiting:
            if not change.done():
                change.set_result(None)
