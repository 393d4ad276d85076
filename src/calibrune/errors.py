"""The errors that this package raises on purpose: one sentence that says what was asked, what was found, what to do."""


class CalibruneError(Exception):
    """Base class: `except CalibruneError` catches every deliberate failure of this package."""

    exit_status = 2
    """What the command line ends with: 2 for a request that cannot be met (nothing was written)."""


class ConfigError(CalibruneError, ValueError):
    """A setting asks for something impossible."""


class ModelError(CalibruneError):
    """A model cannot be found, read, or understood."""


class CorpusError(CalibruneError):
    """A source of text cannot be read."""


class CalibrationError(CalibruneError):
    """The corpus cannot give the calibration set that was asked for."""


class OutputError(CalibruneError):
    """The place to write to is not free."""


class RunError(CalibruneError):
    """Something broke under way; what was done is kept and named."""

    exit_status = 1
