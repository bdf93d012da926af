"""The wheel carries the scripts and their configs too, which a checkout has at its top: `longbert train` runs them."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithScripts(build_py):
    """Copies what `longbert.folders.scripts_folder` looks for beside the package's modules."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the checkout itself is there
            return
        scripts = Path(self.build_lib, "longbert", "scripts")
        ignored = shutil.ignore_patterns("__pycache__")
        for folder in ("finetune", "configs"):
            shutil.copytree(folder, scripts / folder, dirs_exist_ok=True, ignore=ignored)
        shutil.copy("train.py", scripts)


setup(cmdclass={"build_py": BuildWithScripts})
