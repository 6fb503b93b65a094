"""Brings onnxruntime-web to `docs/playground/vendor`, so that the pages run without a network.

    python tools/vendor_onnxruntime_web.py

It needs npm. The version is pinned and its archive compared with a checksum before anything is
taken from it. What is there already and unchanged stays; 14 MB of WebAssembly are not committed.
"""

import argparse
import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "playground" / "vendor"
PACKAGE = "onnxruntime-web@1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
FILES = (
    "ort.wasm.min.js",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
MARK = "onnxruntime-web.version"  # written last: what is there is whole


def main() -> int:
    """Fetch, compare, take the files that the pages need."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--out", type=Path, default=FOLDER)
    out = words.parse_args().out
    if (out / MARK).is_file() and (out / MARK).read_text() == f"{PACKAGE} {SHA512}\n":
        print(f"{PACKAGE} is in {out}.")
        return 0
    npm = shutil.which("npm")
    if npm is None:
        print("npm is needed to fetch onnxruntime-web; without it draw.html stays asleep.")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=folder, check=True)
        (archive,) = Path(folder).glob("*.tgz")
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != SHA512:
            print(f"{PACKAGE} is not what it was: SHA-512 {found}, expected {SHA512}.")
            return 1
        out.mkdir(parents=True, exist_ok=True)
        (out / MARK).unlink(missing_ok=True)
        with tarfile.open(archive) as held:
            for name in FILES:
                member = held.extractfile(f"package/dist/{name}")
                if member is None:
                    print(f"{PACKAGE} has no {name}.")
                    return 1
                (out / name).write_bytes(member.read())
    (out / MARK).write_text(f"{PACKAGE} {SHA512}\n")
    print(f"{PACKAGE} was put into {out}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
