# sh deploy/image/build.sh FOLDER: undoubt, and all that the image needs of it, in a virtual environment at FOLDER.
# The Dockerfile runs it; it runs on any machine with Python >= 3.11 and venv as well. Everything that is installed
# has the hash that requirements/ names.
set -eu
folder=$1
python=${PYTHON:-python3}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
pip() { "$place/build/bin/pip" --quiet --disable-pip-version-check "$@"; }

"$python" -m venv "$place/build"
pip install --require-hashes --only-binary :all: --requirement requirements/build.txt
pip wheel --no-index --no-deps --no-build-isolation --wheel-dir "$place" .

# Without pip: what runs has no use for it, nor has an intruder.
"$python" -m venv --without-pip "$folder"
pip --python "$folder/bin/python" install --require-hashes --only-binary :all: --no-compile \
    --requirement requirements/image.txt
pip --python "$folder/bin/python" install --no-deps --no-index --no-compile "$place"/undoubt-*.whl
# Nothing can be compiled later: the root of the image is read-only.
"$folder/bin/python" -m compileall -q -j 0 "$folder/lib"
"$folder/bin/undoubt" --version
