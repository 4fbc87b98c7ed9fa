"""What a session may hold at a moment, which follows from what its programs tried and what had returned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from generator import script
from judge import Found
from steps import Contents


@attrs.frozen
class Moment:
    """What had been tried and what had returned.

    Attributes:
        done: of each program the number of the last step that had returned; -1 before the first.
        tried: of each program the number of the last step that was tried; -1 before the first.
        destroy: '', 'try' once the session's end was tried, 'done' once that had returned.
        given: how many IDs had been given out.
    """

    done: tuple[int, ...]
    tried: tuple[int, ...]
    destroy: str = ""
    given: int = 0

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Moment:
        """Return the moment that `attrs.asdict` and JSON have written."""
        return cls(**{**facts, "done": tuple(facts["done"]), "tried": tuple(facts["tried"])})


class Account:
    """Keeps what the programs of a workload report, and judges what was found.

    Args:
        seed: of the script.
        programs: how many there are.
        count: how many steps each one does.
    """

    def __init__(self, seed: int, programs: int, count: int) -> None:
        self.seed, self.programs, self.count = seed, programs, count
        self._steps = [script(seed, program, programs, count) for program in range(programs)]
        self._done, self._tried = [-1] * programs, [-1] * programs
        self._destroy = ""
        self._given: list[int] = []

    def take_down(self, words: Sequence[Any]) -> None:
        """Take down what a program reports."""
        what, whose, *rest = words
        if whose == "destroy":
            self._destroy = what
        elif what == "ids":
            self._given += [int(id_.rpartition(".")[2]) for id_ in rest[0].values()]
        else:
            (self._done if what == "done" else self._tried)[int(whose)] = rest[0]

    def moment(self) -> Moment:
        """Return what has been taken down until now."""
        return Moment(tuple(self._done), tuple(self._tried), self._destroy, len(self._given))

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can write, and `from_json` needs."""
        return {"seed": self.seed, "programs": self.programs, "steps": self.count, "given": self._given}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Account:
        """Return an account that judges as the one whose `to_json` gave this."""
        account = cls(facts["seed"], facts["programs"], facts["steps"])
        account._given = list(facts["given"])
        return account

    def wrong(self, found: Found, moment: Moment) -> str:
        """Return what is wrong with what was found, if that was the moment; '' if nothing is."""
        if found.problem:
            return found.problem
        if found.contents is None:
            return "" if moment.destroy or not self._is_made(moment) else "LOST: there is no session"
        if moment.destroy == "done":
            return "the session is there again, which was destroyed"
        if found.new and found.new in self._given[: moment.given]:
            return f"the ID of N {found.new} was given out a second time"
        for program in range(self.programs):
            wrong = self._wrong(program, found.contents.get(str(program), Contents()), moment)
            if wrong:
                return wrong
        return ""

    def _is_made(self, moment: Moment) -> bool:
        """Return whether the session must be there.

        A program that has only opened it, while another one was still making it, has lost nothing.
        """
        if min(moment.done) >= 0:
            return True
        return any(
            step.changes
            for done, steps_ in zip(moment.done, self._steps, strict=True)
            for step, _ in steps_[: done + 1]
        )

    def _wrong(self, program: int, found: Contents, moment: Moment) -> str:
        done, tried = moment.done[program], moment.tried[program]
        states = [after for _, after in self._steps[program]]
        allowed = states[max(done, 0) : tried + 1] or [Contents()]
        if found in allowed:
            return ""
        earlier = [number for number, after in enumerate(states) if after == found]
        if earlier:
            return f"LOST: program {program} is as after its step {earlier[-1]}, step {done} had returned"
        kind = f"step {tried} ({self._steps[program][tried][0].kind})" if tried >= 0 else "nothing"
        return f"HALF: program {program} tried {kind}; {found.difference(allowed[-1])}"
