"""Judge longbert by transformers' own tests: `python tests/transformers_suite.py [POSITION_TYPE ...]`.

Takes the source package of whichever transformers is installed, whose mixins test every model there, and runs them
over every head, in a process for each position type. `tests/suite/` is what the mixins ask of a model.
"""

import collections
import dataclasses
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import transformers
from conftest import LONG, TYPES
from suite.pipelines import save_models


TESTS = Path(__file__).parent
CACHE = TESTS.parent / "runs" / "transformers-suite"
WINDOW = {"position_type": "learned-extended", "max_position_embeddings": LONG, "attention_window": 8}
POSITION_TYPES = {**TYPES, "window": WINDOW}

# What the shipped mixins import and the source package leaves out
MISSING = {
    # without it Python would look for modules of `tests` among ours too
    "tests/__init__.py": "",
    # export to ONNX and ExecuTorch, an experiment of transformers' that no encoder depends on
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    # asked only whether a test class inherits it, as those of models that generate must
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    # a value other than the default for what every config has; ConfigTester checks that each is kept
    "tests/utils/test_configuration_utils.py": """config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "problem_type": "regression",
}
""",
}
# The mixin for pipelines has all but the body of each task's test: what is fed in, and what should come out
PIPELINE_TESTS = """from suite.pipelines import PipelineTests


class {name}(PipelineTests):
    task = "{task}"
"""


@dataclasses.dataclass
class Verdict:
    """What became of the tests of one position type: failures by name, and how many were skipped for each reason."""

    passed: int = 0
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    skipped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def __str__(self) -> str:
        return f"{self.passed} passed, {len(self.failed)} failed, {self.skipped.total()} skipped"


def source_package() -> Path:
    """The folder of the installed transformers' tests, made complete; downloaded once."""
    folder = CACHE / f"transformers-{transformers.__version__}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
            requirement = f"transformers=={transformers.__version__}"
            options = ["--no-deps", "--no-binary", "transformers", "--dest", temporary]
            subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *options, requirement], check=True)
            (archive,) = Path(temporary).glob("transformers-*.tar.gz")
            with tarfile.open(archive) as package:
                tests = [member for member in package if member.name.startswith(f"{folder.name}/tests/")]
                package.extractall(temporary, tests, filter="data")
            (Path(temporary) / folder.name).rename(folder)
    complete(folder)
    return folder


def complete(folder: Path) -> None:
    """Add what the source package leaves out, and the installed transformers where the tests look for the sources."""
    pipelines = (folder / "tests" / "test_pipeline_mixin.py").read_text()
    stubs = dict(MISSING)
    for module, name in re.findall(r"pipelines\.test_pipelines_(\w+)(?:\.| import )(\w+)", pipelines):
        stubs[f"tests/pipelines/test_pipelines_{module}.py"] = PIPELINE_TESTS.format(
            name=name, task=module.replace("_", "-")
        )
    for path, text in stubs.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    sources = folder / "src" / "transformers"
    sources.parent.mkdir(exist_ok=True)
    sources.unlink(missing_ok=True)
    sources.symlink_to(Path(transformers.__file__).parent)


def judge(settings: dict[str, Any]) -> Verdict:
    """Run the mixins over every head with these settings of the config."""
    folder = source_package()
    with tempfile.TemporaryDirectory() as temporary:
        save_models(settings, Path(temporary))
        report = Path(temporary) / "report.xml"
        # Not our pytest settings, but none: the suite's own marks and options are of another project
        options = ["-c", os.devnull, "--rootdir", folder, "--noconftest", "-p", "no:cacheprovider", "--tb=short"]
        paths = [folder, TESTS, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "LONGBERT_SETTINGS": json.dumps(settings),
            "TRANSFORMERS_TINY_MODEL_PATH": temporary,
            "RUN_SLOW": "1",  # those that transformers leaves out by default too
        }
        command = [sys.executable, "-m", "pytest", *options, "--junitxml", report, TESTS / "suite" / "heads.py"]
        run = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
        if run.returncode not in (0, 1):  # neither passed nor failed: it did not run
            raise RuntimeError(run.stdout + run.stderr)
        return read(report)


def read(report: Path) -> Verdict:
    """The verdict of a JUnit report. A test with a skipped subtest counts as skipped."""
    verdict = Verdict()
    for case in ElementTree.parse(report).iter("testcase"):
        outcomes = {outcome.tag: outcome for outcome in case}
        failure = outcomes.get("failure", outcomes.get("error"))
        if failure is not None:
            verdict.failed[f"{case.get('classname', '').strip('.')}.{case.get('name')}"] = failure.text or ""
        elif "skipped" in outcomes:
            reason = outcomes["skipped"].get("message", "")
            verdict.skipped[re.sub(r"LongBert(Model|For)\w*", "the head", reason)] += 1
        else:
            verdict.passed += 1
    return verdict


def main(names: list[str]) -> int:
    print(f"transformers {transformers.__version__}")
    skipped: collections.Counter[str] = collections.Counter()
    failed = False
    for name in names or POSITION_TYPES:
        verdict = judge(POSITION_TYPES[name])
        print(f"{name}: {verdict}", flush=True)
        for test, traceback in verdict.failed.items():
            print(f"\n{test}\n{traceback}\n")
        skipped += verdict.skipped
        failed |= bool(verdict.failed)
    print("skipped:")
    for reason, count in skipped.most_common():
        print(f"{count:8}  {reason}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
