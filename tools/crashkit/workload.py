"""A program of a workload: `workload.py PATH SEED PROGRAM PROGRAMS STEPS [--broken HOW] [--destroy]`.

It is started with the recorder, or with `--tell FD`, a pipe that it tells of what it does.
"""

from __future__ import annotations

import argparse

import gc3session.session.session
import gc3session.tables.lmdb.opening
from breakages import BREAKAGES
from gc3session import Session
from performer import SMALL_MAP, Performer, Piped, Recorded, Teller
from script import steps

MANY_BLANKS = 200
"""Blank bytes of a mirror that closing tidies away, far fewer than usual."""


def on_a_small_scale() -> None:
    """Have maps grow and mirrors be tidied after few tasks, where it usually takes many."""
    gc3session.tables.lmdb.opening._SMALLEST_MAP = SMALL_MAP
    gc3session.session.session._FULL_OF_BLANKS = MANY_BLANKS


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    for name in ("seed", "program", "programs", "steps"):
        parser.add_argument(name, type=int)
    parser.add_argument("--tell", type=int)
    parser.add_argument("--broken", choices=BREAKAGES)
    parser.add_argument("--destroy", action="store_true")
    options = parser.parse_args()
    on_a_small_scale()
    if options.broken:
        BREAKAGES[options.broken]()
    tell: Teller = Recorded() if options.tell is None else Piped(options.tell)
    if options.destroy:
        session = Session(options.path, create=False, map_size=SMALL_MAP)
        tell("try", "destroy")
        session.destroy()
        tell("done", "destroy")
        return
    performer = Performer(options.path, options.program, tell)
    for number, step in enumerate(steps(options.seed, options.program, options.programs, options.steps)):
        performer.perform(number, step)
    if performer.session is not None:
        performer.session.close()


if __name__ == "__main__":
    main()
