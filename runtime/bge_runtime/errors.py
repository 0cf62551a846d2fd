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
    """Base class of the errors of bge-runtime.

    Causes: commands raise it as it is where an extra is not installed, or a port is taken.

    What to do: catch this class to catch every error of bge-runtime. Each message says what to do.
    """


class ModelNotFoundError(BgeError, FileNotFoundError):
    """There is no such model, or no bundle of it.

    Causes: a misspelled path, a folder above or below the model's, or a file instead of a folder.

    What to do: pass the folder that holds ``bge.json`` or ``config.json``, or a Hub ID.
    """

    def __str__(self) -> str:
        # OSError would print "[Errno None] None" for a single argument.
        return str(self.args[0]) if self.args else ""


class HubError(ModelNotFoundError):
    """The hub does not have the model, or cannot be reached.

    Causes: a misspelled name or revision, a gated or private repository, no network, or
    ``HF_HUB_OFFLINE`` without a complete copy in the cache.

    What to do: check the name, run ``hf auth login``, or fetch the model once with a network and
    ``hf download``. A local folder needs no hub.
    """


class BundleError(BgeError):
    """A folder is not a usable bundle.

    Causes: another model class than the one that was called, a damaged ``bge.json``, a tokenizer
    or graph that the installed libraries cannot read.

    What to do: open the model with the class that the message names, update the library that it
    names, or export the model again with ``bge-export --force``.
    """


class BundleVersionError(BundleError):
    """The bundle was written by a newer bge-runtime.

    Causes: a reranker or a later format, opened by an older version.

    What to do: ``pip install -U bge-runtime``.
    """


class BundleIntegrityError(BundleError):
    """A file of the bundle is missing, truncated or changed.

    Causes: an interrupted copy, Git LFS pointers in place of files, or a file that was edited.

    What to do: copy or download the bundle again; in a clone, run ``git lfs pull``.
    """


class PoolingError(BgeError, ValueError):
    """The bundle's graphs do not have the requested pooling.

    Causes: ``pooling_method`` differs from the pooling in the bundle.

    What to do: leave the argument out, or export again with ``bge-export --pooling``.
    """


class EngineError(BgeError):
    """An engine cannot be used as requested.

    Causes: an engine, or ``cuda_graphs``, for which the bundle has no variant; or a cache that
    cannot be written.

    What to do: leave the argument out to let bge-runtime choose. ``bge-runtime doctor --speed
    BUNDLE`` says which variant is chosen here, and why the others are not.
    """


class EngineNotInstalledError(EngineError, ImportError):
    """The engine's package is not installed.

    Causes: the extra was not installed, or a library that the engine needs is missing.

    What to do: ``pip install 'bge-runtime[cpu]'``, or ``[cuda]`` on a machine with an NVIDIA GPU.
    """


class DeviceError(EngineError, ValueError):
    """The device is unknown, or the bundle has no variant for it.

    Causes: a misspelled device, or a GPU with a bundle that was exported for the CPU only.

    What to do: pass ``'cpu'`` or ``'cuda:0'``; export again with ``--target cuda`` for a GPU.
    """


class PrecisionError(EngineError, ValueError):
    """The bundle has no variant of the requested precision.

    Causes: the bundle was exported without that precision, the processor does not compute in it,
    or the variant fails the parity check on this machine.

    What to do: leave ``precision`` out, export with ``--precision``, or look at ``bge-runtime
    doctor --verify BUNDLE``.
    """


class ProviderError(EngineError):
    """The engine runs on another provider than requested.

    Causes: a driver that is too old, missing CUDA libraries, or both wheels of ONNX Runtime in one
    environment.

    What to do: run ``bge-runtime doctor``, which names what is missing; or pass ``devices='cpu'``.
    """


class InferenceError(EngineError, RuntimeError):
    """The engine failed while running a batch; see ``__cause__``.

    Causes: a tokenizer of another model, a driver that failed, or a defect of the engine.

    What to do: read ``__cause__``, and check the bundle with ``bge-runtime doctor --verify
    BUNDLE``.
    """


class OutOfMemoryError(InferenceError):
    """A batch does not fit into the device's memory.

    Causes: other programs on the GPU, or very long texts. Batches are halved before this is
    raised.

    What to do: free memory, or pass a smaller ``max_length``.
    """


class NotFiniteError(InferenceError):
    """The vector of a text contains NaN or infinity.

    Causes: a component too large for float16, or weights that overflow in a lower precision.

    What to do: pass ``precision='fp32'``, or ``normalize_embeddings=True``. The message has the
    number of the text.
    """


class ExportError(BgeError):
    """An export was rejected or failed; nothing was written.

    Causes: a model that is not supported, settings that a bundle cannot follow, a damaged
    checkpoint, a missing extra, or a graph too far from PyTorch.

    What to do: follow the message. If it asks you to report the model, open an issue with it.
    """
