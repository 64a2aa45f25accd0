"""What the graph makes of a config before anything runs."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import Config
from pipeline.stages.graph import absolute


def test_every_local_path_is_made_absolute() -> None:
    """Workers of a cluster may run in another folder."""
    given = Config.model_validate(
        {
            "run": {"name": "a", "root": "runs"},
            "data": {"source": {"kind": "webdataset", "path": "s3://bucket/*.tar", "classes": "names.json"}},
            "autoencoder": {
                "loss": {"perceptual": {"kind": "lpips", "path": "vgg.pth", "heads": "heads.pth"}},
                "training": {"steps": 1},
            },
            "diffusion": {"training": {"steps": 1}},
            "evaluate": {"extractor": {"kind": "inception", "path": "inception.pth"}, "weights": "other.safetensors"},
        }
    )
    made, here = absolute(given), Path.cwd()
    assert made.data.source.path == "s3://bucket/*.tar"
    assert [made.run.root, made.data.source.classes] == [str(here / "runs"), str(here / "names.json")]
    perceptual, evaluate = made.autoencoder.loss.perceptual, made.evaluate
    assert [perceptual.path, perceptual.heads] == [str(here / "vgg.pth"), str(here / "heads.pth")]
    assert [evaluate.extractor.path, evaluate.weights] == [str(here / "inception.pth"), str(here / "other.safetensors")]
