"""`gc3session import-wf`: workflow executions from WfFormat documents."""

from __future__ import annotations

from pathlib import Path

import click

from ... import InvalidArgument, Workflow
from ..console import Failure, complain, open_session, os_error_text, quantity, say
from ..input import parse_json
from ..interrupts import Interrupts


@click.command("import-wf", short_help="Record workflow executions from WfFormat files.")
@click.argument("session")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
def import_wf(session: str, files: tuple[str, ...]) -> int:
    """Record workflow executions in SESSION, from FILEs in WfFormat 1.5 JSON.

    SESSION is made if it does not exist. Each file becomes a Workflow: a collection in the session, which
    has a WorkflowTask for each task of the file. It is stored in one transaction, and nothing that the file
    says is dropped. 'gc3session list -r SESSION' shows the workflows and their tasks.

    A file that can't be read or isn't WfFormat is reported on standard error; the others are imported, and
    the exit status is 1.
    """
    tasks = imported = 0
    with open_session(session, read_only=False) as target, Interrupts() as interrupts:
        for file in files:
            try:
                with interrupts.waiting():
                    workflow = _workflow(file)
            except Failure as failure:
                complain(str(failure))
                continue
            except KeyboardInterrupt:
                break
            try:
                id_ = target.add(workflow)
            except InvalidArgument as error:
                complain(f"{file}: {error}; not imported")
                continue
            imported += 1
            tasks += len(workflow)
            say(f"{id_}  {workflow.jobname}: {quantity(len(workflow), 'task')} from {file}")
    if interrupts.caught is not None:
        complain(f"interrupted; {quantity(imported, 'workflow')} of {len(files)} imported")
        return interrupts.status
    if len(files) > 1:
        say(f"imported {quantity(imported, 'workflow')} with {quantity(tasks, 'task')} in {session}")
    return 0 if imported == len(files) else 1


def _workflow(file: str) -> Workflow:
    """Return the workflow that a file describes. Raise Failure, naming the file, if it can't be read."""
    try:
        return Workflow.from_document(parse_json(Path(file).read_bytes().removeprefix(b"\xef\xbb\xbf")))
    except OSError as error:
        what = os_error_text(error, file)
    except InvalidArgument as error:
        what = f"{file}: {error}"
    except ValueError as error:
        what = f"{file}: {error}: is it the right file, and whole?"
    raise Failure(f"{what}; not imported")
