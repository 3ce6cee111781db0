"""What becomes of a job: its errors in the log, in the words for its user, and an exit code."""

import logging
import os
from collections.abc import Callable

from tvf.config import DISK_FULL, explain_error
from tvf.errors import InputError

BAD_INPUT, INTERRUPTED = 2, 130  # exit codes of a job's process, following shell conventions

log = logging.getLogger(__name__)


def log_in_file(text: str) -> None:
    """Log a line in the job's file alone: the sweep's command has told the terminal."""
    record = logging.LogRecord(__name__, logging.INFO, __file__, 0, text, None, None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def job_outcome(run: Callable[[], object], name_of: Callable[[], str]) -> int:
    """Call `run`, which trains a job; log its errors and return an exit code.

    The code is 0 if the job is done, paused, or running in another process.
    """
    try:
        run()
    except InputError as error:
        log.error("error: %s", error, exc_info=debugging())
        return BAD_INPUT
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL and not debugging():
            log.error("error: %s", explain_error(error))
        else:
            log.exception("%s failed", name_of())
        return 1
    except KeyboardInterrupt:
        log.error("%s interrupted", name_of())
        return INTERRUPTED
    except SystemExit as error:
        log.error("%s called sys.exit(%s)", name_of(), error.code)
        return 1
    return 0


def debugging() -> bool:
    """Whether the user wants tracebacks of input errors: TVF_DEBUG=1."""
    return os.environ.get("TVF_DEBUG") == "1"
