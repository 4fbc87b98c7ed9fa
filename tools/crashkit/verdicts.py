"""What a session may hold at a moment, told from what its programs tried and what had returned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from judge import Found
from script import Holds, steps


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
    def from_told(cls, told: dict[str, Any]) -> Moment:
        """Return the moment that `attrs.asdict` has told of."""
        return cls(**{**told, "done": tuple(told["done"]), "tried": tuple(told["tried"])})


class Account:
    """Keeps what the programs of a workload tell, and judges what was found.

    Args:
        seed: of the script.
        programs: how many there are.
        count: how many steps each one does.
    """

    def __init__(self, seed: int, programs: int, count: int) -> None:
        self.seed, self.programs, self.count = seed, programs, count
        self._steps = [list(steps(seed, program, programs, count)) for program in range(programs)]
        self._done, self._tried = [-1] * programs, [-1] * programs
        self._destroy = ""
        self._given: list[int] = []

    def take_down(self, words: Sequence[Any]) -> None:
        """Take down what a program told."""
        what, whose, *rest = words
        if whose == "destroy":
            self._destroy = what
        elif what == "ids":
            self._given += [int(id_.rpartition(".")[2]) for id_ in rest[0].values()]
        else:
            (self._done if what == "done" else self._tried)[whose] = rest[0]

    def moment(self) -> Moment:
        """Return what has been taken down until now."""
        return Moment(tuple(self._done), tuple(self._tried), self._destroy, len(self._given))

    def told(self) -> dict[str, Any]:
        """Return what `from_told` needs."""
        return {"seed": self.seed, "programs": self.programs, "steps": self.count, "given": self._given}

    @classmethod
    def from_told(cls, told: dict[str, Any]) -> Account:
        """Return an account that judges as the one that has told this."""
        account = cls(told["seed"], told["programs"], told["steps"])
        account._given = list(told["given"])
        return account

    @property
    def complete(self) -> bool:
        """Whether all programs have done all steps."""
        return all(done == len(steps_) - 1 for done, steps_ in zip(self._done, self._steps, strict=True))

    def wrong(self, found: Found, moment: Moment) -> str:
        """Return what is wrong with what was found, if that was the moment; '' if nothing is."""
        if found.problem:
            return found.problem
        if found.holds is None:
            return "" if moment.destroy or not self._is_made(moment) else "LOST: there is no session"
        if moment.destroy == "done":
            return "the session is there again, which was destroyed"
        if found.new and found.new in self._given[: moment.given]:
            return f"the ID of N {found.new} was given out a second time"
        for program in range(self.programs):
            wrong = self._wrong(program, found.holds.get(program, Holds()), moment)
            if wrong:
                return wrong
        return ""

    def _is_made(self, moment: Moment) -> bool:
        """Return whether the session must be there.

        Who has only opened it, while another program was still making it, has lost nothing.
        """
        if min(moment.done) >= 0:
            return True
        return any(
            step.after != step.before
            for done, steps_ in zip(moment.done, self._steps, strict=True)
            for step in steps_[: done + 1]
        )

    def _wrong(self, program: int, held: Holds, moment: Moment) -> str:
        done, tried = moment.done[program], moment.tried[program]
        allowed = [step.after for step in self._steps[program][max(done, 0) : tried + 1]] or [Holds()]
        if held in allowed:
            return ""
        earlier = [number for number, step in enumerate(self._steps[program]) if step.after == held]
        if earlier:
            return f"LOST: program {program} is as after its step {earlier[-1]}, step {done} had returned"
        kind = f"step {tried} ({self._steps[program][tried].kind})" if tried >= 0 else "nothing"
        return f"HALF: program {program} tried {kind}; {_difference(allowed[-1], held)}"


def _difference(expected: Holds, held: Holds) -> str:
    """Return in which way *held* is something else than what was *expected*."""
    differ = []
    for where in ("members", "stored"):
        ours, theirs = getattr(expected, where), getattr(held, where)
        missing = [name for name in ours if name not in theirs]
        strange = [name for name in theirs if name not in ours]
        other = {name: (ours[name], theirs[name]) for name in ours if theirs.get(name, ours[name]) != ours[name]}
        told = {"lacks": missing, "has": strange, "differs in": other}
        differ += [f"{where} {verb} {what}" for verb, what in told.items() if what]
    if expected.finished != held.finished:
        differ.append(f"the end is {held.finished} instead of {expected.finished}")
    return "; ".join(differ) or "its tasks are in another order"
