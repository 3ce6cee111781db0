"""Classify images with an exported model and without tvf or torch:

python examples/onnx_predict.py model.onnx photo.jpg another.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

if len(sys.argv) < 3:
    sys.exit(__doc__)
session = onnxruntime.InferenceSession(sys.argv[1])
facts = json.loads(session.get_modelmeta().custom_metadata_map["tvf"])
for path in sys.argv[2:]:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    square = ImageOps.fit(image, (facts["image_size"],) * 2, Image.Resampling.BILINEAR)
    probabilities = np.asarray(session.run(None, {"images": np.asarray(square)[None]})[0])[0]
    best = probabilities.argmax()
    print(f"{path}: {facts['classes'][best]} ({probabilities[best]:.3f})")
