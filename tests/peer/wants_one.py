"""An environment as a user might write one: whatever is asked, the right answer is 1. It is learned in a few steps."""

from __future__ import annotations


class WantsOne:
    """Say 1."""

    name = "one"
    turn_bytes = 2

    def prompt(self, seed: int) -> str:
        return f"count a {seed % 10}:"

    def check(self, seed: int, answer: str) -> bool:
        return answer == "1"
