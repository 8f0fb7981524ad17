#!/bin/sh
# Creates the Python 3.11 environment of the PyTorch peer that validation/speed.py and peer_accuracy.py compare with.
#
#   validation/peers/setup.sh [FOLDER]                                 (default: .venv beside this script)
#   LLC_PEER_PYTHON=FOLDER/bin/python python validation/speed.py
#
# TORCH_INDEX_URL, if set, is the package index that PyTorch comes from: its index of CPU wheels makes the download small.
set -eu
folder=${1:-$(dirname "$0")/.venv}
python3.11 -m venv "$folder"
"$folder/bin/python" -m pip install "torch==2.13.0" ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
"$folder/bin/python" -m pip install "devinterp==1.3.2"
