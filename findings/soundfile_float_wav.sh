#!/usr/bin/env bash
# soundfile 0.14.0 (libsndfile 1.2.2): a .wav of floats holds the second in which it was written. libsndfile puts a chunk
# PEAK into it, with the time and the largest value of each channel, so that the same samples written twice are two
# different files: caches, shards and deduplication by content take them for two sounds. A .wav of 16, 24 or 32 bit
# integers has no such chunk and is the same bytes each time; so is a .wav of floats by scipy.io.wavfile. Read back, all
# are the same samples.
# What to do: hash the samples and not the file, or write floats with scipy.io.wavfile.write.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet soundfile==0.14.0 scipy==1.17.1 numpy==2.3.5 || { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import sys
import time

import numpy as np
import scipy
import soundfile
from scipy.io import wavfile

folder = sys.argv[1]
x = (0.5 * np.sin(np.arange(4000) / 10)).astype(np.float32)
print(f"soundfile {soundfile.__version__}, {soundfile.__libsndfile_version__}, scipy {scipy.__version__}")


def by_soundfile(subtype):
    return lambda path: soundfile.write(path, x, 8000, subtype=subtype)


writers = {
    "soundfile, PCM_16": by_soundfile("PCM_16"),
    "soundfile, PCM_24": by_soundfile("PCM_24"),
    "soundfile, FLOAT": by_soundfile("FLOAT"),
    "scipy, float32": lambda path: wavfile.write(path, 8000, x),
}
files = {name: [] for name in writers}
for turn in range(2):
    for name, write in writers.items():
        path = f"{folder}/{turn}.wav"
        write(path)
        with open(path, "rb") as file:
            files[name].append((file.read(), soundfile.read(path)[0]))
    time.sleep(1.1)
other = []
for name, ((first, a), (second, b)) in files.items():
    same = "the same bytes" if first == second else f"{sum(p != q for p, q in zip(first, second))} bytes differ"
    print(f"{name}: written twice, {same}; PEAK {'in it' if b'PEAK' in first else 'not in it'}; "
          f"the same samples: {np.array_equal(a, b)}")
    other += [name] if first != second else []
if other != ["soundfile, FLOAT"]:
    sys.exit("the behaviour has changed: not what the head of this script says")
PYTHON
"$folder/env/bin/python" "$folder/check.py" "$folder" || exit 1
echo "as described"
