"""The errors of bge-runtime.

::

    BgeError
    ├── ModelNotFoundError       (FileNotFoundError)  there is no such model
    │   └── HubError             the hub does not have it, or cannot be reached
    ├── BundleError              a folder is not a usable bundle
    │   ├── BundleVersionError   written by a newer bge-runtime
    │   └── BundleIntegrityError a file is missing, truncated or changed
    ├── PoolingError             (ValueError)  the bundle pools differently
    ├── EngineError
    │   ├── EngineNotInstalledError  (ImportError)
    │   ├── DeviceError          (ValueError)  unknown device, or no variant for it
    │   ├── PrecisionError       (ValueError)  no variant of that precision
    │   ├── ProviderError        the session runs on another provider than requested
    │   └── InferenceError       (RuntimeError)  the engine failed on a batch
    │       ├── OutOfMemoryError a batch does not fit into the device's memory
    │       └── NotFiniteError   a text's vector contains NaN or infinity
    └── ExportError              ``bge-export`` wrote no bundle

Each message says what was requested, what was found and what to do. Arguments of a wrong type or
value raise ``TypeError`` or ``ValueError``.
"""


class BgeError(Exception):
    """Base class of the errors of bge-runtime."""


class ModelNotFoundError(BgeError, FileNotFoundError):
    """There is no such model, or no bundle of it."""

    def __str__(self) -> str:
        # OSError would print "[Errno None] None" for a single argument.
        return str(self.args[0]) if self.args else ""


class HubError(ModelNotFoundError):
    """The hub does not have the model, or cannot be reached."""


class BundleError(BgeError):
    """A folder is not a usable bundle."""


class BundleVersionError(BundleError):
    """The bundle was written by a newer bge-runtime."""


class BundleIntegrityError(BundleError):
    """A file of the bundle is missing, truncated or changed."""


class PoolingError(BgeError, ValueError):
    """The bundle's graphs do not have the requested pooling."""


class EngineError(BgeError):
    """An engine cannot be used as requested."""


class EngineNotInstalledError(EngineError, ImportError):
    """The engine's package is not installed."""


class DeviceError(EngineError, ValueError):
    """The device is unknown, or the bundle has no variant for it."""


class PrecisionError(EngineError, ValueError):
    """The bundle has no variant of the requested precision."""


class ProviderError(EngineError):
    """The engine runs on another provider than requested."""


class InferenceError(EngineError, RuntimeError):
    """The engine failed while running a batch; see ``__cause__``."""


class OutOfMemoryError(InferenceError):
    """A batch does not fit into the device's memory."""


class NotFiniteError(InferenceError):
    """The vector of a text contains NaN or infinity."""


class ExportError(BgeError):
    """An export was rejected or failed; nothing was written."""
