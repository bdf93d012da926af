"""What every record here says of where its numbers come from, and how it is written. Needs nothing but Python."""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


RESULTS = Path(__file__).with_name("results")
ALLOCATOR = "MALLOC_"  # how the variables begin that set glibc's


def without_paths(text: str) -> str:
    """Each absolute path cut down to its last part: they say nothing on another machine."""
    return re.sub(r"(^|[\s='\"(])/(?:\S*/)?", r"\1", text)


def version(package: str) -> str | None:
    """Of an installed package; None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git(*arguments: str) -> str:
    """What git says of this repository; nothing where there is no git or no repository."""
    try:
        answer = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return answer.stdout.strip()


def accelerator() -> dict[str, Any] | None:
    """The GPU that this process computes on; None on a CPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    card = torch.cuda.get_device_properties(0)
    capability, cuda = [card.major, card.minor], torch.version.cuda
    return {"name": card.name, "capability": capability, "memory_bytes": card.total_memory, "cuda": cuda}


def environment() -> dict[str, Any]:
    """What the numbers depend on and the reader cannot see."""
    cpuinfo = Path("/proc/cpuinfo")
    processor = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text("utf-8") if cpuinfo.exists() else "")
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": without_paths(" ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])),
        "commit": git("rev-parse", "HEAD") or "unknown",
        "uncommitted_changes": bool(git("status", "--porcelain", "--", ":/modeling", ":/benchmarks/*.py")),
        "processor": processor[1] if processor else platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "accelerator": accelerator(),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "transformers", "longbert")},
        },
        "allocator": {name: value for name, value in os.environ.items() if name.startswith(ALLOCATOR)},
    }


def write(file: Path, content: dict[str, Any]) -> None:
    """Write a record."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
