#!/usr/bin/env bash
# soundfile 0.14.0 (libsndfile 1.2.2): of Ogg streams one behind the other, which RFC 3533 (section 4) lets a file hold
# and which recorders of broadcasts and `cat a.ogg b.ogg` write, the first alone is read: `info`, `read` and `len` say
# 1 s of 1.5 s, and nothing says that more was there. FFmpeg (PyAV 18.1.0) reads both. Labels, lengths and splits of a set
# then rest on the beginnings of sounds.
# What to do: look for a second page that begins a stream (its bytes "OggS" 0 2), or decode such files with FFmpeg.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet soundfile==0.14.0 av==18.1.0 numpy==2.3.5 || { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import io
import sys

import av
import numpy as np
import soundfile

RATE = 16_000
x = 0.5 * np.sin(np.arange(RATE) / 10)
print(f"soundfile {soundfile.__version__}, {soundfile.__libsndfile_version__}, av {av.__version__}")


def ogg(samples):
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="OGG", subtype="VORBIS")
    return file.getvalue()


both = ogg(x) + ogg(x[: RATE // 2])
told, read = soundfile.info(io.BytesIO(both)).frames, len(soundfile.read(io.BytesIO(both))[0])
with av.open(io.BytesIO(both)) as container:
    decoded = sum(frame.samples for frame in container.decode(audio=0))
print(f"samples of {RATE} and {RATE // 2} in one file: soundfile says {told} and reads {read}, FFmpeg reads {decoded}")
if (told, read) != (RATE, RATE) or decoded < 1.4 * RATE:
    sys.exit("the behaviour has changed: not what the head of this script says")
PYTHON
"$folder/env/bin/python" "$folder/check.py" || exit $?
echo "as described"
