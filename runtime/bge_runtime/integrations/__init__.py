"""Integrations with other libraries: one public module for each, with an extra of the same name.

They compute in fp32 by default, so that vectors equal those of the tool that they replace. Only
users import this folder. To add an integration:

1. Write a module beside ``chroma.py`` that opens its model with `open_model` of ``_models.py``.
   It raises `not_installed` if the library is missing, and must not block an event loop.
2. Add an extra of its name to ``pyproject.toml``.
3. Add a row to `PACKAGES` of ``tests/integrations/test_missing_packages.py``.
4. Add an example to ``docs/coming-from``, which the tests run.
"""


def not_installed(extra: str, error: ImportError) -> ImportError:
    """Return the error for an integration whose library is not installed.

    Args:
        extra: Name of the extra that installs it.
        error: The error that importing it raised.
    """
    return ImportError(
        f"bge_runtime.integrations.{extra.replace('-', '_')} needs a package that is not "
        f"installed ({error}). Run `pip install 'bge-runtime[{extra}]'`"
    )
