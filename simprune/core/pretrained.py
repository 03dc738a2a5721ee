"""Loading parts of transformers by name, with errors of one line."""

from pathlib import Path
from typing import Any


def load(kind: str, name: str, **options: Any) -> Any:
    """`transformers.KIND.from_pretrained(name, **options)`.

    Args:
        kind: a class of transformers, such as "AutoTokenizer".
        name: on the hub, or a local folder.
        options: of `from_pretrained`.

    Returns:
        The loaded object.

    Raises:
        ValueError: in one line, where transformers is missing, and for a name that cannot be loaded.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError("transformers is not installed; pip install 'simprune[hf]'") from None
    folder = Path(name).expanduser()
    if name.startswith((".", "/", "~")) and not folder.is_dir():
        raise ValueError(f"no folder {name}; expected one that save_pretrained wrote, or a name on the hub")
    try:
        return getattr(transformers, kind).from_pretrained(str(folder) if name.startswith("~") else name, **options)
    except OSError as error:  # also for a name that is not on the hub, or no network
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name} cannot be loaded: {reason} (without a network give a local folder)") from error
