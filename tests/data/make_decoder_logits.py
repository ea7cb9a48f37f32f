"""Makes ``decoder_logits.npz``: what torch transformers computes of the models in ``decoders``.

    python tests/data/make_decoder_logits.py

Takes torch and transformers beside what the tests take.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from decoders import CONFIGS, by_transformers, saved  # noqa: E402

# Tokens whose logits are kept: all windows are shorter than the text before the last one.
PLACES = [0, 3, 8]

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        logits = {
            name: by_transformers(saved(Path(folder) / name, name))[0, PLACES] for name in CONFIGS
        }
    np.savez(HERE / "decoder_logits.npz", places=PLACES, **logits)
