#!/bin/sh
# Creates the environments of the PyTorch peers that validation/speed.py and peer_accuracy.py compare with.
#
#   validation/peers/setup.sh [FOLDER]                                 (default: .venv beside this script)
#   LLC_PEERS=FOLDER python validation/speed.py
#   LLC_PEER_PYTHON=FOLDER/devinterp/bin/python python validation/peer_accuracy.py
#
# TORCH_INDEX_URL, if set, is the package index that PyTorch comes from: its index of CPU wheels makes the download small.
set -eu
folder=${1:-$(dirname "$0")/.venv}

# NAME PYTHON PACKAGE
make() {
    "$2" -m venv "$folder/$1"
    "$folder/$1/bin/python" -m pip install "torch==2.13.0" ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
    "$folder/$1/bin/python" -m pip install "$3"
}

make devinterp python3.11 devinterp==1.3.2
make devinterp2 python3.11 devinterp==2.0.1
make canonical python3.12 canonical-interp==0.2.7
