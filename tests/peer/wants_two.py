"""An environment as a user might write one: whatever is asked, the right answer is 2. It is learned in a few steps."""

from __future__ import annotations


class WantsTwo:
    """Say 2."""

    name = "two"
    turn_bytes = 2

    def prompt(self, seed: int) -> str:
        return f"count a {seed % 10}:"

    def check(self, seed: int, answer: str) -> bool:
        return answer == "2"
