"""Loading parts of transformers by name, folder or GGUF file, with errors of one line."""

import struct
from pathlib import Path
from typing import Any

import torch
from torch import nn

GGUF = ".gguf"


def load(kind: str, name: str, **options: Any) -> Any:
    """`transformers.KIND.from_pretrained(name, **options)`.

    Args:
        kind: a class of transformers, such as "AutoTokenizer".
        name: on the hub, a local folder, or either with the name of a GGUF file behind it, such as
            "models/llama/llama-q4.gguf".
        options: of `from_pretrained`; code beside the weights runs only where they say trust_remote_code.

    Returns:
        The loaded object; a model from a GGUF file has its weights in full, and no note of their quantisation.

    Raises:
        ValueError: in one line, where transformers, or gguf for a GGUF file, is missing, for a name that cannot be
            loaded, and for a model whose weights are still quantised.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError("transformers is not installed; pip install 'simprune[hf]'") from None
    name, options = _in_folder(name, options)
    folder = Path(name).expanduser()
    if folder.is_file():
        raise ValueError(f"{name} is a file; expected a folder that save_pretrained wrote, or a name on the hub")
    if name.startswith((".", "/", "~")) and not folder.is_dir():
        raise ValueError(f"no folder {name}; expected one that save_pretrained wrote, or a name on the hub")
    file = options.get("gguf_file")
    if file is not None:
        _check_file(folder, str(file))
    options = {"trust_remote_code": False} | options  # left out, transformers asks on the terminal
    try:
        part = getattr(transformers, kind).from_pretrained(str(folder) if name.startswith("~") else name, **options)
    except Exception as error:  # of many types for damaged files; OSError also where there is no network
        if isinstance(error, ValueError) and "trust_remote_code" in str(error):
            raise ValueError(f"{name} brings its own code; if you trust it, say trust_remote_code: true") from error
        reason = str(error).partition("\n")[0] or type(error).__name__
        hint = "" if folder.is_dir() else " (without a network give a local folder)"
        raise ValueError(f"{name} cannot be loaded: {reason}{hint}") from error
    if isinstance(part, nn.Module):
        _unquantised(part, name)
        if file is not None:
            part.name_or_path = located(name, str(file))  # pyright: ignore[reportArgumentType]
    return part


def located(name: str, gguf_file: str | None = None) -> str:
    """A name or folder with the name of a GGUF file behind it, as `load` takes it.

    >>> located("models/llama", "llama-q4.gguf"), located("models/llama")
    ('models/llama/llama-q4.gguf', 'models/llama')
    """
    return name if gguf_file is None else f"{name.rstrip('/')}/{gguf_file}"


def _in_folder(name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The folder or name on the hub, and options that name the GGUF file in it."""
    if not name.endswith(GGUF):
        return name, options
    if options.get("gguf_file") is not None:
        raise ValueError(f"{name} is a GGUF file and gguf_file names another one, {options['gguf_file']}; give one")
    folder, _, file = name.rpartition("/")
    return folder or ("/" if name.startswith("/") else "."), options | {"gguf_file": file}


def _check_file(folder: Path, file: str) -> None:
    """Raise ValueError where a GGUF file is not in a local folder or not whole, and where no package reads it."""
    try:
        import gguf  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(f"{file}: GGUF files need the package gguf; pip install 'simprune[hf]'") from None
    if folder.is_dir() and not (folder / file).is_file():
        known = ", ".join(sorted(path.name for path in folder.glob(f"*{GGUF}"))) or "none"
        raise ValueError(f"no GGUF file {file} in {folder}; there: {known}")
    if (folder / file).is_file():
        try:
            gguf.GGUFReader(folder / file)  # reads names and shapes; the weights stay on disk
        except (struct.error, IndexError, KeyError, ValueError) as error:
            raise ValueError(f"{folder / file} is damaged, or cut off; expected a whole GGUF file") from error


def _unquantised(model: nn.Module, name: str) -> None:
    """Remove what transformers notes of a quantisation from a model whose weights were read in full.

    Otherwise the model cannot be saved, and its configuration asks for quantised weights that are not there.

    Raises:
        ValueError: where weights are still quantised: structures of such layers cannot be removed.
    """
    config = getattr(model, "config", None)
    if getattr(config, "quantization_config", None) is None and not getattr(model, "is_quantized", False):
        return
    full = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    packed = [key for key, tensor in state.items() if tensor.dtype not in full and key.endswith("weight")]
    if packed:
        kind = state[packed[0]].dtype
        raise ValueError(
            f"{name} is quantised: {packed[0]} is of {kind}; give weights of full or half precision, such as a GGUF "
            "file, which is read in full"
        )
    if config is not None and hasattr(config, "quantization_config"):
        del config.quantization_config
    for key in ("hf_quantizer", "quantization_method", "is_quantized"):
        vars(model).pop(key, None)
