"""Everything bge-runtime raises on purpose.

::

    BgeError
    ├── ModelNotFoundError       (FileNotFoundError)  no bundle where one was asked for
    │   └── HubError             the hub does not give the model
    ├── BundleError              a folder that is not a usable bundle
    │   ├── BundleVersionError   written by a newer bge-runtime
    │   └── BundleIntegrityError a file is missing, short or changed
    ├── PoolingError             (ValueError)  the bundle pools differently
    ├── EngineError
    │   ├── EngineNotInstalledError  (ImportError)
    │   ├── DeviceError          (ValueError)  unknown device, or no variant for it
    │   ├── PrecisionError       (ValueError)  no variant of that precision
    │   ├── ProviderError        the session runs elsewhere than asked
    │   └── InferenceError       (RuntimeError)  the engine failed on a batch
    │       ├── OutOfMemoryError it does not fit into the device's memory
    │       └── NotFiniteError   a text's vector holds NaN or infinity
    └── ExportError              ``bge-export`` could not, or would not, write a bundle

Each message says what was asked, what was found and what to do. Wrong argument
types and values raise the plain ``TypeError`` and ``ValueError``.
"""


class BgeError(Exception):
    """Base of every error that bge-runtime raises on purpose."""


class ModelNotFoundError(BgeError, FileNotFoundError):
    """There is no bundle where one was asked for."""

    def __str__(self) -> str:
        # OSError would print "[Errno None] None" style text for one argument.
        return str(self.args[0]) if self.args else ""


class HubError(ModelNotFoundError):
    """The hub does not give the model, or cannot be reached."""


class BundleError(BgeError):
    """A folder is not a bundle that this version can use."""


class BundleVersionError(BundleError):
    """The bundle was written by a newer bge-runtime."""


class BundleIntegrityError(BundleError):
    """A file of the bundle is missing, short or changed."""


class PoolingError(BgeError, ValueError):
    """The bundle's graphs do not contain the pooling that was asked for."""


class EngineError(BgeError):
    """An engine cannot be used as asked."""


class EngineNotInstalledError(EngineError, ImportError):
    """The engine's package is not installed."""


class DeviceError(EngineError, ValueError):
    """The device is unknown, or the bundle has nothing that runs on it."""


class PrecisionError(EngineError, ValueError):
    """The bundle has no variant of the precision that was asked for."""


class ProviderError(EngineError):
    """The engine runs on another provider than the one asked for."""


class InferenceError(EngineError, RuntimeError):
    """The engine failed while running a batch; see ``__cause__``."""


class OutOfMemoryError(InferenceError):
    """A batch does not fit into the device's memory."""


class NotFiniteError(InferenceError):
    """What the engine computed of a text holds NaN or infinity."""


class ExportError(BgeError):
    """An export was refused or failed; nothing was written."""
