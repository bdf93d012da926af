"""The one way into every script and command: what a user can mend is one line on stderr and exit status 2."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .disclosure import redact_output, redacted
from .errors import is_of_lost_peer, mendable
from .tables import strict_json


MENDABLE_EXIT_STATUS = 2
TRACEBACK_VARIABLE = "LONGBERT_TRACEBACK"
REPORT_VARIABLE = "TORCHELASTIC_ERROR_FILE"


def start(main: Callable[[list[str]], int | None]) -> None:
    """Run the main function of a script with its arguments; where it does not end well, so does the process."""
    redact_output()
    if status := run(Path(sys.argv[0]).name, lambda: main(sys.argv[1:])):
        sys.exit(status)


def run(name: str, main: Callable[[], int | None]) -> int:
    """Run `main`, and say in one line what a user can mend; a bug is raised, with its traceback.

    With `LONGBERT_TRACEBACK=1` in the environment everything is raised.

    Args:
        name: of the script or command, which begins the line.

    Returns:
        The exit status.
    """
    try:
        return main() or 0
    except KeyboardInterrupt:
        if _speaks(line := f"{name}: interrupted"):
            print(line, file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        said = mendable(error)
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        if said is None and not (is_of_lost_peer(error) and _has_been_said()):
            raise
        if said is not None and _speaks(line := redacted(f"{name}: {said}")):
            print(line, file=sys.stderr)
        return MENDABLE_EXIT_STATUS


def _speaks(line: str) -> bool:
    """Whether this process says it: of those that torch's launcher has started on a machine the first.

    The line stands in the report too that the launcher asks every process for, and shows at its end, which nothing
    from within can prevent.
    """
    mark = _mark()
    if mark is None:
        return True
    told = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}
    try:
        Path(os.environ[REPORT_VARIABLE]).write_text(strict_json({"message": told}), "utf-8")
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # better twice than not at all
        return True
    return True


def _has_been_said() -> bool:
    mark = _mark()
    return mark is not None and mark.exists()


def _mark() -> Path | None:
    """A file that is there once one of the launcher's processes has said what went wrong; their reports lie in folders
    beside it."""
    report = os.environ.get(REPORT_VARIABLE)
    return Path(report).parents[1] / "said" if report else None


def launch(argv: list[str]) -> int:
    """`accelerate launch`, which ends with the exit status of the first process that failed, and says nothing of its
    own about it."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    arguments = launch_command_parser().parse_args(argv)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    try:
        launch_command(arguments)
    except subprocess.CalledProcessError as error:
        status = error.returncode
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
    else:
        status = 0
    return status if status >= 0 else 128 - status  # as shells say that a signal ended a process
