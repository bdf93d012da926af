"""Errors that a user can mend, told from bugs: the first become one line, the others keep their traceback.

What a user gives meets a library in many places, and each library has errors of its own. They are translated there,
into a `ValueError` or an `OSError` that says what was given and what to do. What is here is the last net.
"""

from collections.abc import Iterable

import torch
from huggingface_hub.errors import HTTPError, StrictDataclassError
from safetensors import SafetensorError


class MendableError(RuntimeError):
    """Something went wrong in the middle of a run that its settings or data can mend."""


def refuse_no_number(outputs: Iterable[torch.Tensor], of: str) -> None:
    """Raise `MendableError` where a model says what is no number, of which figures and labels could be made."""
    if any(output.isnan().any() for output in outputs):
        raise MendableError(
            f"what the model says of {of} is no number: its weights are damaged (see longbert inspect), or its "
            "numbers too large for half precision"
        )


# also those of transformers, datasets and the Hub, most of which are ValueErrors or OSErrors
USER_ERRORS = (
    ValueError,
    OSError,
    StrictDataclassError,
    HTTPError,
    SafetensorError,
    MendableError,
    MemoryError,
    torch.OutOfMemoryError,
)
# what torch says of memory in a RuntimeError, as of anything else
OF_MEMORY = ("DefaultCPUAllocator", "can't allocate memory")
# and of a file that it cannot write, as on a full disk, or read
OF_FILES = ("PytorchStream", "inline_container.cc", "iostream error")
# of what the extras bring, what is imported
IN_EXTRAS = {
    "bs4": "train,html",
    "datasets": "train",
    "evaluate": "train",
    "matplotlib": "train",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "rjieba": "chinese",
    "scipy": "train",
    "seqeval": "train",
    "sentence_transformers": "train",
    "sklearn": "train",
    "tensorboard": "train",
}
LONGEST = 1000  # characters of a line


def mendable(error: BaseException) -> str | None:
    """What an error says, in one line, if it is one that a user can mend; None where it is a bug."""
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").partition(".")[0]
        return f"this needs {error.name}: pip install 'longbert[{IN_EXTRAS[module]}]'" if module in IN_EXTRAS else None
    if isinstance(error, ImportError):  # without a name: raised by a library to say what it needs
        return in_one_line(error) if error.name is None else None
    known = isinstance(error, USER_ERRORS) or _says(error, OF_FILES) or _says(error, OF_MEMORY)
    return in_one_line(error) if known else None


def _says(error: BaseException, marks: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in marks)


def is_of_lost_peer(error: BaseException) -> bool:
    """Whether an error only says that another process of the run is gone."""
    lost = isinstance(error, torch.distributed.DistError) if torch.distributed.is_available() else False
    return lost or isinstance(error, RuntimeError) and "Connection closed by peer" in str(error)


def in_one_line(error: BaseException) -> str:
    """What an error says, without the words of the library that passed it on, and in signs that can be seen."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _says(error, OF_MEMORY):
        return f"out of memory: read fewer or shorter rows at once ({_visible(str(error)) or 'on the CPU'})"
    said = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
    return _visible(str(said)) or type(said).__name__


def _visible(text: str) -> str:
    line = " ".join(text.split())
    line = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line)
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."
