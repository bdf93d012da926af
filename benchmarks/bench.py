"""Longbert beside its alternatives on a CPU: every figure is a ratio of two sides that one run measured in turn.

    python benchmarks/bench.py                                  # every case, about 40 minutes on one core
    python benchmarks/bench.py --cases padded-mlm short --repeats 5
    python benchmarks/bench.py --cases window-8192 --against REVISION   # the same step by an earlier longbert
    python benchmarks/bench.py --cases --out RECORD.json        # the table and the picture of a record again

Time: both processes are built and warmed, then asked in turn, A B A B ..., so that slow drifts of the machine fall on
both. With one thread a step's time is its processor time, which others who use the machine change least; with more it
is that of the clock. Memory: the peak of one step above the model and its gradients, in other processes, one at a
time, under allocator settings that make peaks comparable and steps slower.

What each case is, is told in cases.py. The record (JSON: every sample, versions, machine, commit, command, allocator)
keeps the cases of earlier runs that this one does not run again. Ends with an error where a case fails, or two sides
that must agree do not; a missed goal is only reported, for speed depends on the machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cases import BY_NAME, CASES, Case, Goal
from records import RESULTS, environment, git, write


FOLDER = Path(__file__).parent
# glibc raises its mmap threshold as it goes, up to 32 MB, and then keeps freed blocks: one step "peaked" at 2745 MB
# by default and at 896 MB with these. They cost page faults, so no time is measured under them.
FOR_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
# Blocks past 32 MB are otherwise given back and faulted in anew at every operation: at twice the length GELU, copies
# and LayerNorm then took 7 to 11 times as long. These keep them, as CUDA's allocator does.
KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
QUANTITIES = ("time", "memory")
SPARE = 0.1  # of a core: what others may use of those that we do


# ---- sides


class NotMeasured(Exception):
    """A side could not be built or run; the message says why."""


class Side:
    """A child process that holds one side of a case, built (`sides.py`).

    Args:
        command: what runs it.
        variables: of its environment, beside ours.
    """

    def __init__(self, command: list[str], variables: dict[str, str]):
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **variables},
        )

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *error: Any) -> None:
        self.process.kill()
        self.process.communicate()

    def answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with status {self.process.wait()}"}
        if "error" in answer:
            raise NotMeasured(f"failed: {answer['error']}")
        return answer

    def ask(self, request: str) -> dict[str, Any]:
        print(request, file=self.process.stdin, flush=True)
        return self.answer()


Commands = list[tuple[list[str], dict[str, str]]]  # of our side and the other, with the variables of each


def commands(case: Case, arguments: argparse.Namespace, earlier: Path | None) -> Commands:
    """What runs our side and the other.

    Args:
        earlier: a checkout of the revision that is the other side.
    """

    def of(side: str, root: Path) -> tuple[list[str], dict[str, str]]:
        line = [sys.executable, str(FOLDER / "cases.py"), side, case.name]
        # an installed longbert must not stand in for the one that is asked for
        return [*line, str(arguments.threads), str(arguments.shrink)], {"PYTHONPATH": str(root / "modeling")}

    ours = of("ours", FOLDER.parent)
    if earlier is not None:
        return [ours, of("ours", earlier)]
    if isinstance(case.against, str):
        if not arguments.lsg_python:
            raise NotMeasured(f"not run: needs --lsg-python, see {case.against}")
        return [ours, ([arguments.lsg_python, str(FOLDER / case.against), str(arguments.threads)], {"PYTHONPATH": ""})]
    return [ours, of("against", FOLDER.parent)] if case.against else [ours]


def compare_times(sides: Commands, allocator: dict[str, str], repeats: int, check: bool) -> tuple[Any, ...]:
    """What each side says of itself, samples of each, taken in turn, and with `check` how far apart their results
    are."""
    with ExitStack() as stack:
        running = [stack.enter_context(Side(line, variables | allocator)) for line, variables in sides]
        versions = [side.answer() for side in running]
        difference = result_difference(running) if check else None
        _warm_up, *rounds = [[side.ask("time") for side in running] for _ in range(1 + repeats)]
    return versions, [list(samples) for samples in zip(*rounds, strict=True)], difference


def result_difference(sides: list[Side]) -> float:
    """Largest difference between two sides' results, relative to the largest value."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, str(number))) for number in range(len(sides))]
        for side, path in zip(sides, paths, strict=True):
            side.ask(f"keep {path}")
        ours, theirs = map(torch.load, paths)
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def compare_memory(sides: Commands) -> tuple[list[dict], list[list[dict]]]:
    """What each side says of itself, and one sample of each."""
    versions, samples = [], []
    for line, variables in sides:
        with Side(line, variables | FOR_MEMORY) as side:
            versions.append(side.answer())
            samples.append([side.ask("memory")])
    return versions, samples


@contextmanager
def checkout(revision: str | None) -> Iterator[Path | None]:
    """A folder with the repository as it was at a revision.

    Raises:
        ValueError: git has no such revision.
    """
    if revision is None:
        yield None
        return
    if not git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"):
        raise ValueError(f"--against {revision}: git knows no such revision")
    with tempfile.TemporaryDirectory() as folder:
        git("worktree", "add", "--detach", folder, revision)
        try:
            yield Path(folder)
        finally:
            git("worktree", "remove", "--force", folder)


# ---- a case's record


def judge(goal: Goal, quantity: str, samples: list[list[dict]], allocator: dict[str, str]) -> dict[str, Any]:
    """The record of one quantity of the samples: medians, their ratio, that of each pair, every sample."""

    def value(ours: float, theirs: float) -> float:
        return {"gain": theirs / ours, "cost": ours / theirs, "amount": ours}[goal.kind]

    columns = [[sample[quantity] for sample in side] for side in samples]
    medians = [statistics.median(column) for column in columns]
    shown = value(medians[0], medians[-1])
    pairs = [value(pair[0], pair[-1]) for pair in zip(*columns, strict=True)]
    reached = None if goal.limit is None else shown >= goal.limit if goal.kind == "gain" else shown <= goal.limit
    return {
        "quantity": quantity,
        "kind": goal.kind,
        "goal": goal.limit,
        "value": shown,
        "reached": reached,
        "lowest_pair": min(pairs),
        "highest_pair": max(pairs),
        "medians": medians,
        "allocator": allocator or "glibc's own settings",
        "samples": samples,
    }


def measure(case: Case, arguments: argparse.Namespace, earlier: Path | None) -> dict[str, Any]:
    """One case's record."""
    name, what, same_to = case.name, case.what, case.same_to
    if earlier is not None:
        name, what, same_to = f"{name}-{arguments.against}", f"{what}, against revision {arguments.against}", None

    keeps_memory = case.keeps_memory or arguments.keep_memory
    if keeps_memory and not case.keeps_memory:
        name, what = f"{name}-keeping", f"{what}, memory kept"

    def goal(of: Goal) -> Goal:
        if earlier is not None:
            return Goal("gain")
        return of if arguments.shrink == 1 else Goal(of.kind)

    record: dict[str, Any] = {"case": name, "what": what, "threads": arguments.threads, "shrink": arguments.shrink}
    record["environment"] = environment()
    try:
        sides = commands(case, arguments, earlier)
        if case.time and "time" in arguments.quantities:
            allocator = KEEPING if keeps_memory else {}
            check = same_to is not None
            record["sides"], samples, difference = compare_times(
                sides, allocator, arguments.repeats * case.rounds, check
            )
            clock = "cpu_seconds" if arguments.threads == 1 else "seconds"
            record["time"] = judge(goal(case.time), clock, samples, allocator)
            record["cores_of_others"] = max(sample["cores_of_others"] for side in samples for sample in side)
            record["difference"] = difference
            if difference is not None and not difference <= same_to:
                raise NotMeasured(f"failed: results differ by {difference:.1g}, {same_to:.0e} is allowed")
        if case.memory and "memory" in arguments.quantities:
            record["sides"], samples = compare_memory(sides)
            record["memory"] = judge(goal(case.memory), "bytes", samples, FOR_MEMORY)
    except NotMeasured as reason:
        record["problem"] = str(reason)
    return record


# ---- the table


def amount_text(quantity: str, value: float) -> str:
    if quantity == "time":
        return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def value_text(quantity: str, judged: dict[str, Any], value: float) -> str:
    return amount_text(quantity, value) if judged["kind"] == "amount" else f"{value:.2f}x"


def shown(quantity: str, judged: dict[str, Any]) -> str:
    """The value, and for times that of the lowest and the highest pair."""
    text = partial(value_text, quantity, judged)
    spread = f" ({text(judged['lowest_pair'])} to {text(judged['highest_pair'])})" if quantity == "time" else ""
    return text(judged["value"]) + spread


def cells(quantity: str, judged: dict[str, Any] | None) -> list[str]:
    """A quantity's cells in the table: what the sides need, what that shows, the goal."""
    if judged is None:
        return ["", "", ""]
    needs = " : ".join(amount_text(quantity, median) for median in judged["medians"])
    if judged["goal"] is None:
        return [needs, shown(quantity, judged), ""]
    bound = "at least" if judged["kind"] == "gain" else "at most"
    goal = value_text(quantity, judged, judged["goal"])
    return [needs, shown(quantity, judged), f"{bound} {goal}: {'yes' if judged['reached'] else 'NO'}"]


def remarks(record: dict[str, Any]) -> list[str]:
    found = [record["problem"]] if "problem" in record else []
    if record.get("difference") is not None and not found:
        found.append(f"equal to {record['difference']:.0e}")
    left = record["environment"]["cores"] - record["threads"]
    if record.get("cores_of_others", 0) > left + SPARE:
        found.append(f"DISTURBED: others used up to {record['cores_of_others']:.1f} cores")
    if record["shrink"] != 1:
        found.append(f"a trial with all lengths divided by {record['shrink']}, no result")
    return found


HEADER = ["case", "time, ours : theirs", "shows", "goal", "memory, ours : theirs", "shows", "goal", "remarks"]
LEGEND = """
Both sides in one run, in turn, each in its own process; medians. A ratio with a goal of "at least" is theirs / ours
(larger is better), with "at most" ours / theirs (smaller is better); in brackets the lowest and the highest pair.
Memory is the peak above the model and its gradients. Of times marked DISTURBED, only processor times say anything."""


def print_table(records: list[dict[str, Any]]) -> None:
    for row in [HEADER, ["---"] * len(HEADER), *map(table_row, records)]:
        print("| " + " | ".join(row) + " |")
    print(LEGEND)


def table_row(record: dict[str, Any]) -> list[str]:
    quantities = [cell for quantity in ("time", "memory") for cell in cells(quantity, record.get(quantity))]
    return [record["what"], *quantities, "; ".join(remarks(record))]


# ---- the picture


COLORS, MARKERS = {"time": "C0", "memory": "C1"}, {"time": "o", "memory": "s"}


def draw(records: list[dict[str, Any]], file: Path) -> None:
    """Every ratio with the spread of its pairs, and a tick where it was to be."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    parts = {
        "times as much that the other side needs (more is better)": "gain",
        "times as much that ours needs (less is better)": "cost",
    }
    of_kind = {
        label: [each for each in records if any(each.get(of, {}).get("kind") == kind for of in COLORS)]
        for label, kind in parts.items()
    }
    of_kind = {label: rows for label, rows in of_kind.items() if rows}
    if not of_kind:
        return
    heights = [len(rows) + 1 for rows in of_kind.values()]
    figure, axes = plt.subplots(
        len(of_kind),
        figsize=(11, 1.2 + 0.5 * sum(heights)),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for axis, (label, rows) in zip(axes.flat, of_kind.items(), strict=True):
        for height, record in enumerate(rows):
            for quantity, shift in (("time", -0.15), ("memory", 0.15)):
                if quantity in record:
                    draw_ratio(axis, height + shift, quantity, record[quantity])
        axis.set_yticks(range(len(rows)), [record["what"] for record in rows], fontsize=8)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.axvline(1, color="black", linewidth=1)
        axis.grid(axis="x", color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.2)
        axis.set_xlabel(label)
    for quantity, color in COLORS.items():
        axes[0, 0].plot([], [], MARKERS[quantity], color=color, label=quantity)
    axes[0, 0].plot([], [], "|", color="black", markersize=10, label="goal")
    figure.legend(loc="outside lower center", ncols=3)
    about = records[-1]["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    figure.suptitle(
        f"{about['date'][:10]}, {about['processor']}, {records[-1]['threads']} thread(s), {versions}", size=9
    )
    figure.savefig(file, dpi=120)
    plt.close(figure)


def draw_ratio(axis: Any, height: float, quantity: str, judged: dict[str, Any]) -> None:
    value, color = judged["value"], COLORS[quantity]
    spread = [[value - judged["lowest_pair"]], [judged["highest_pair"] - value]]
    spread = [[max(0, each) for each in side] for side in spread]  # the median of few pairs may lie beside them
    axis.errorbar(value, height, xerr=spread, fmt=MARKERS[quantity], capsize=3, color=color)
    if judged["goal"] is not None:
        axis.plot(judged["goal"], height, "|", color="black", markersize=10)
    place = (max(value, judged["highest_pair"], judged["goal"] or 0), height)
    axis.annotate(
        shown(quantity, judged), place, textcoords="offset points", xytext=(6, 0), va="center", size=7, color=color
    )


# ---- a run


def chosen(names: list[str]) -> list[Case]:
    """The named cases, a name standing for itself or all that continue it.

    Raises:
        ValueError: there is no such case.
    """
    cases = []
    for name in names:
        found = [case for case in CASES if case.name == name or case.name.startswith(f"{name}-")]
        if not found:
            raise ValueError(f"no case {name!r}; there are {', '.join(BY_NAME)}")
        cases += [BY_NAME[name]] if name in BY_NAME else found
    return cases


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=list(BY_NAME), metavar="NAME", help=f"of {', '.join(BY_NAME)}")
    parser.add_argument("--repeats", type=int, default=3, help="time samples of each side")
    parser.add_argument("--threads", type=int, default=1, help="of each side")
    parser.add_argument(
        "--keep-memory", action="store_true", help="measure times under an allocator that gives no memory back"
    )
    parser.add_argument("--quantities", nargs="+", choices=QUANTITIES, default=QUANTITIES)
    parser.add_argument("--out", type=Path, default=RESULTS / f"bench-{time.strftime('%Y-%m-%d')}.json")
    parser.add_argument(
        "--against", metavar="REVISION", help="of git; the other side is then our own of that revision"
    )
    parser.add_argument("--lsg-python", metavar="PYTHON", help="python of a venv as lsg_peer.py describes")
    parser.add_argument(
        "--shrink", type=int, default=1, help="divide all lengths: tries the script out, its ratios mean nothing"
    )
    arguments = parser.parse_args()
    try:
        arguments.cases = chosen(arguments.cases)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def main() -> int:
    arguments = parse()
    kept = json.loads(arguments.out.read_text("utf-8"))["cases"] if arguments.out.exists() else []
    records = {record["case"]: record for record in kept}
    failed = False
    with checkout(arguments.against) as earlier:
        for case in arguments.cases:
            record = measure(case, arguments, earlier)
            print(" | ".join(table_row(record)), flush=True)
            failed |= record.get("problem", "").startswith("failed")
            records[record["case"]] = record
            write(arguments.out, {"cases": list(records.values())})
    print_table(list(records.values()))
    draw(list(records.values()), arguments.out.with_suffix(".png"))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
