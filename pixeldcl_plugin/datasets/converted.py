"""Data sets that a tool of this package writes."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from mmseg.datasets import BaseSegDataset


class ConvertedDataset(BaseSegDataset):
    """A data set that says which command writes it where its list of images is missing.

    Arguments are those of ``mmseg.datasets.BaseSegDataset``; ``ann_file``, a text file with one image name a
    line, must be given.

    Raises:
        FileNotFoundError: If ``ann_file`` does not exist.
    """

    #: The tool in ``tools/dataset_converters`` and its arguments; ``{root}`` is the folder of the data,
    #: ``{folder}`` that of the list.
    COMMAND: ClassVar[str]

    def load_data_list(self) -> list[dict]:
        """List image and label paths; see the base class."""
        if not Path(self.ann_file).is_file():
            command = self.COMMAND.format(root=self.data_root, folder=Path(self.ann_file).parent)
            raise FileNotFoundError(
                f"ann_file {self.ann_file!r} not found; write the data with: "
                f"python tools/dataset_converters/{command}"
            )
        return super().load_data_list()
