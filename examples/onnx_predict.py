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
size = facts["image_size"]
if facts.get("white_point") or facts.get("window"):
    sys.exit("The model was trained on images with other values than 0 to 255: use tvf predict.")
# Files of format 1 may not name these.
resize, interpolation = facts.get("resize", "crop"), facts.get("interpolation", "bilinear")
for path in sys.argv[2:]:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    method = Image.Resampling[interpolation.upper()]
    if resize == "crop":
        square = ImageOps.fit(image, (size, size), method)
    elif resize == "squash":
        square = image.resize((size, size), method)
    else:
        width, height = (max(1, round(side * size / max(image.size))) for side in image.size)
        square = Image.new("RGB", (size, size), facts["pad_color"])
        place = (size - width) // 2, (size - height) // 2
        square.paste(image.resize((width, height), method), place)
    probabilities = np.asarray(session.run(None, {"images": np.asarray(square)[None]})[0])[0]
    best = probabilities.argmax()
    print(f"{path}: {facts['classes'][best]} ({probabilities[best]:.3f})")
