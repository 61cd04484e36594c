"""Write the weights of a released deconvolution U-Net, and the same taken over into iPixelDCL.

``python docs/examples/take_over.py --out FOLDER`` writes ``deconv.pth`` and ``ipixeldcl.pth`` for ``load_from``, and
``report.json`` with how far each layer, and the logits, are from those before.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from pixeldcl_plugin import convert_upsamplers, create_model

MODEL = "unethead_lite0-deconv-k4_1xb8-amp-1k_camvid-160x128"


def main() -> None:
    """Take the model over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL, help="a released model with deconvolutions")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    model = create_model(args.model, pretrained=True).eval()
    image = torch.randn(2, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(image)
    torch.save({"state_dict": model.state_dict()}, args.out / "deconv.pth")
    rows = convert_upsamplers(model, probe=image)
    with torch.no_grad():
        logits = float((model(image) - before).abs().max() / before.abs().max())
    torch.save({"state_dict": model.state_dict()}, args.out / "ipixeldcl.pth")
    report = {"model": args.model, "logits": logits, "layers": [asdict(row) for row in rows]}
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    for row in rows:
        print(row)
    print(f"logits differ by {logits:.1e} of the largest, in float32")


if __name__ == "__main__":
    main()
