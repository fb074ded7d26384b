"""Which mistakes and events end a subcommand, and with which exit code?

Exit codes: they are a contract with schedulers (docs/design.md, "Exit codes"). 75 asks
to be run again; 2, 70, 76 and 78 must not be retried.
"""


class SparsecodError(Exception):
    """Ends a subcommand with one sentence for the user and an exit code for the scheduler."""

    exit_code = 1
    of_all = False  # whether every process of a run leaves with it


class SaveFailed(SparsecodError):
    """A checkpoint could not be made."""


class UsageError(SparsecodError):
    """The command line has an option or a word that the subcommand does not know."""

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
    """More updates than allowed were skipped, as a loss or gradient was not finite."""

    exit_code = 70
    of_all = True


# Exit codes of runs that would end in the same way again.
FINAL = (UsageError.exit_code, Diverged.exit_code, ConfigError.exit_code)

# Exit codes without an exception of ours.
INTERRUPTED = 130  # Ctrl-C where nothing can be saved; the shells' convention
PIPE_CLOSED = 141  # the reader of the output has left; the shells' convention
STUCK = 124  # the watchdog ended a process without progress; the code of `timeout`

# How many times in a row a run may end with any other code and no newer checkpoint.
ATTEMPTS = 3
