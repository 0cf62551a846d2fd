"""Ways in from other ecosystems: one module each, and an extra of the same name.

Nothing else in this package imports them. They compute in fp32 unless told otherwise, so that
vectors are those of the tool that was used before.
"""


def not_installed(extra: str, error: ImportError) -> ImportError:
    """Make the error of a module whose ecosystem is not there.

    Args:
        extra: Name of the extra that installs it.
        error: What importing it raised.
    """
    return ImportError(
        f"bge_runtime.integrations.{extra.replace('-', '_')} is for a package that is not "
        f"installed ({error}). Run `pip install 'bge-runtime[{extra}]'`"
    )
