#!/bin/sh
# The entry point of the images: `eomt-deploy` with the arguments of `docker run`. Without arguments
# it serves every model in the folder EOMT_DEPLOY_MODELS, since CMD cannot expand wildcards.
set -eu

# A secret is a file in Docker and in Kubernetes.
if [ -n "${EOMT_DEPLOY_TOKEN_FILE:-}" ]; then
    if [ ! -r "$EOMT_DEPLOY_TOKEN_FILE" ]; then
        echo "error: EOMT_DEPLOY_TOKEN_FILE=$EOMT_DEPLOY_TOKEN_FILE cannot be read." >&2
        echo "  fix: Mount the secret, and let the user $(id -u) read it." >&2
        exit 2
    fi
    EOMT_DEPLOY_TOKEN=$(cat "$EOMT_DEPLOY_TOKEN_FILE")
    export EOMT_DEPLOY_TOKEN
fi

if [ $# -eq 0 ]; then
    folder=${EOMT_DEPLOY_MODELS:-/models}
    for model in "$folder"/*.onnx "$folder"/*.xml "$folder"/*.engine "$folder"/*.pt2; do
        if [ -f "$model" ]; then
            set -- "$@" "$model"
        fi
    done
    if [ $# -eq 0 ]; then
        echo "error: There is no model file (.onnx, .xml, .engine, .pt2) in $folder." >&2
        echo "  fix: Mount a folder with models there, or pass a command, e.g. doctor." >&2
        exit 2
    fi
    set -- serve "$@" --host 0.0.0.0
fi

# `exec` makes eomt-deploy process 1, so that it receives SIGTERM.
exec eomt-deploy "$@"
