"""Packaging of the released weights; pyproject.toml says what they are."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class CleanBuildPy(build_py):
    """Builds from nothing: build/ is kept between builds, and what was retired since must not be shipped."""

    def run(self):
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "pixeldcl_plugin_weights", ignore_errors=True)
        super().run()


setup(cmdclass={"build_py": CleanBuildPy})
