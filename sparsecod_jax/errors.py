"""Which mistakes and events end a verb, and with which exit code?

The codes are a contract with schedulers (docs/design.md, "Exit codes"): 75 asks to be run again, 2, 70, 76 and 78 must not be retried.
"""


class SparsecodError(Exception):
    """Ends a verb with one sentence for the user and an exit code for the scheduler."""

    exit_code = 1
    of_all = False  # whether every process of a run leaves with it


class SaveFailed(SparsecodError):
    """A checkpoint could not be made."""


class UsageError(SparsecodError):
    """The command line has an option or a word that the verb does not know."""

    exit_code = 2


class ConfigError(SparsecodError):
    """The input can't work as given; the message names the fix."""

    exit_code = 78


class Fenced(SparsecodError):
    """Another live process owns the run directory."""

    exit_code = 76


class Preempted(SparsecodError):
    """The machine is being taken away; a checkpoint was committed."""

    exit_code = 75
    of_all = True


class Diverged(SparsecodError):
    """More updates than the budget were skipped for a loss or gradient that was not finite."""

    exit_code = 70
    of_all = True


FINAL = (
    UsageError.exit_code,
    Diverged.exit_code,
    ConfigError.exit_code,
)  # codes of runs that would end so again
INTERRUPTED = 130  # Ctrl-C where nothing can be saved, as shells have it
PIPE_CLOSED = 141  # whoever read the output has left, as shells have it
STUCK = (
    124  # the watchdog ended a process in which nothing happened, as `timeout` has it
)
ATTEMPTS = 3  # in a row that may die of anything else without a newer checkpoint
