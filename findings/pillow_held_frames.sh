#!/usr/bin/env bash
# Pillow 13.0.0: frames of an animation that are equal to the one before are not written. Their time is added to the one
# that is there, in WebP, GIF and PNG alike: three frames of 100 ms, the first two equal, are read as two, of 200 and 100
# ms. Frames that are all equal are no animation: of a WebP and a PNG their time is lost (0 and none), a GIF keeps the
# sum. So a list of frames that was saved does not come back as that list: who pairs frames with times, or with another
# list, by number is wrong from the first held frame on, without an error.
# What to do: take frames by the time at which they are on the screen (sum of `info["duration"]`), and write what has to
# be counted as a strip, or as files of their own. Lossless WebP does not change this.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet pillow==13.0.0 || { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import io
import sys

import PIL
from PIL import Image

red, blue = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
print(f"Pillow {PIL.__version__}")
held, still = [red, red, blue], [red, red, red]
expected = {
    ("WEBP", "held"): [200, 100], ("GIF", "held"): [200, 100], ("PNG", "held"): [200, 100],
    ("WEBP", "still"): [0], ("GIF", "still"): [300], ("PNG", "still"): [None],
}
seen = {}
for kind, name in expected:
    frames, file = held if name == "held" else still, io.BytesIO()
    more = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=100, loop=0, **more)
    file.seek(0)
    with Image.open(file) as image:
        times = []
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            image.load()
            times.append(image.info.get("duration"))
    seen[kind, name] = times
    print(f"{kind}, {name}: 3 frames of 100 ms written, {len(times)} read, of {times} ms")
if seen != expected:
    sys.exit("the behaviour has changed: not what the head of this script says")
PYTHON
"$folder/env/bin/python" "$folder/check.py" || exit 1
echo "as described"
