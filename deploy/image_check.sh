#!/usr/bin/env bash
# Builds deploy/Dockerfile without a Docker engine, and runs the image: `riskstream doctor`, then a worker that scores
# from a real Kafka on this machine until the audit holds. `make image-check` calls it; about 10 minutes and 25 GB.
#
# As root on Debian, with buildah, debootstrap, Java, Maven and redis-server. TARGET=trainer builds the other image and
# trains with it. KEEP=1 keeps the image in .cache/image-check; the base image stays there in any case.
#
# No registry is asked for the base image: debootstrap makes one under the name that the Dockerfile asks for.
# The machine's certificates and pip.conf are lent to the build as volumes; nothing of them stays in the image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=${TARGET:-worker}
work=$PWD/.cache/image-check
image=riskstream-check:$target
base=$(sed -n 's/^ARG BASE=//p' deploy/Dockerfile)
export RISKSTREAM_LOG__FORMAT=json
riskstream() { .venv/bin/riskstream "$@"; }
buildah() { command buildah --root "$work/store" --runroot "$work/run" --storage-driver vfs "$@"; }

say() { printf '\n--- %s\n' "$*"; }
fail() { echo "image-check: $*" >&2; exit 1; }

missing=()
for program in buildah debootstrap java mvn redis-server; do command -v $program > /dev/null || missing+=("$program"); done
((${#missing[@]})) && fail "needs ${missing[*]}. Debian: apt-get install buildah debootstrap openjdk-17-jre-headless maven redis-server"
[[ $(id -u) -eq 0 ]] || fail "needs root: it makes a root file system"

worker_pid= container=
clean_up() {
  status=$?
  [[ -n $worker_pid ]] && kill "$worker_pid" 2> /dev/null && wait "$worker_pid" || true
  riskstream stack down --name image-check --wipe > /dev/null 2>&1 || true
  [[ -n $container ]] && buildah rm "$container" > /dev/null 2>&1 || true
  [[ -n ${KEEP:-} ]] || buildah rmi --force "$image" > /dev/null 2>&1 || true
  rm -rf "$work/bundle"
  exit $status
}
trap clean_up EXIT

make_base() {
  buildah inspect --type image "$base" > /dev/null 2>&1 && return
  say "base image $base, by debootstrap"
  rm -rf "$work/base"
  mkdir -p "$work"
  debootstrap --variant=minbase --include=ca-certificates bookworm "$work/base" > "$work/debootstrap.log"
  # As in Debian's own image: security fixes too, and no package cache.
  printf 'deb http://deb.debian.org/%s main\n' 'debian bookworm' 'debian bookworm-updates' \
    'debian-security bookworm-security' > "$work/base/etc/apt/sources.list"
  rm -rf "$work"/base/var/{lib/apt/lists,cache/apt}/*
  tar -C "$work/base" -cf "$work/base.tar" .
  scratch=$(buildah from scratch)
  buildah add --quiet "$scratch" "$work/base.tar" /
  buildah commit --quiet --format docker --rm "$scratch" "$base"
  rm -rf "$work/base" "$work/base.tar"
}

build() {
  say "build: target $target"
  volumes=(--volume /etc/ssl/certs:/etc/ssl/certs:ro)
  [[ -f /etc/pip.conf ]] && volumes+=(--volume /etc/pip.conf:/etc/pip.conf:ro)
  # One layer per stage: the vfs driver copies every layer whole, and torch is large.
  buildah bud --quiet --isolation chroot --network host --pull-never --format docker --layers=false "${volumes[@]}" \
    --build-arg "REVISION=$(git rev-parse HEAD)" --build-arg "CREATED=$(git log -1 --format=%cI)" \
    --target "$target" --file deploy/Dockerfile --tag "$image" .
  container=$(buildah from --pull-never "$image")
}

in_image() { buildah run --isolation chroot --network host "${mounts[@]}" "${variables[@]}" "$container" -- "$@"; }

look_inside() {
  say "what is in it"
  mounts=() variables=()
  buildah inspect --type image "$image" > "$work/image.json"
  TARGET=$target .venv/bin/python - "$work/image.json" << 'END'
import json, os, sys
config = json.load(open(sys.argv[1]))["Docker"]["config"]
labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items()}
print("user", config["User"], "| entry point", config["Entrypoint"], config["Cmd"], "|", labels)
assert config["User"] == "10001:10001"
assert {"title", "description", "licenses", "version", "revision", "created"} <= labels.keys()
assert labels["revision"] != "unknown"
assert os.environ["TARGET"] != "worker" or "Healthcheck" in config
END
  [[ $(in_image id -u) == 10001 ]] || fail "it does not run as 10001"
  for program in gcc cc make ld pip pip3 uv git curl; do
    in_image sh -c "command -v $program" > /dev/null 2>&1 && fail "$program is left in the image"
  done
  in_image python3 -c 'import pip' 2> /dev/null && fail "pip is left in the image"
  in_image sh -c 'test -w /opt/riskstream || test -w /usr || test -w /etc' 2> /dev/null && fail "it can write to its own program"
  in_image sh -c 'test -w /bundles' || fail "it cannot write to /bundles"
  in_image riskstream version
  in_image sh -c 'du -sm /opt/riskstream /usr 2> /dev/null'
}

serve() {
  say "a broker and a Redis on this machine, topics, a model, events"
  eval "$(riskstream stack up --name image-check --kafka apache --redis server)"
  riskstream topics create
  rm -rf "$work/bundle"
  riskstream train --simulated 20000 --accounts 300 --out "$work/bundle" > "$work/train.log"
  chmod -R a+rX "$work/bundle"
  riskstream simulate --events 4000 --rate 4000 --malformed 0.01

  variables=(--env "RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS=$RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS"
    --env "RISKSTREAM_REDIS__URL=$RISKSTREAM_REDIS__URL" --env RISKSTREAM_SCORING__BUNDLE=/bundles/payments)
  mounts=(--volume "$work/bundle:/bundles/payments:ro")

  say "in the image: riskstream doctor"
  in_image riskstream doctor --golden

  say "in the image: a worker"
  in_image riskstream run 2> "$work/worker.log" &
  worker_pid=$!
  for ((i = 0; i < 120; i++)); do
    kill -0 "$worker_pid" 2> /dev/null || { cat "$work/worker.log"; fail "the worker has ended"; }
    riskstream audit --json > "$work/audit.json" 2> /dev/null && grep -q '"pending": 0' "$work/audit.json" && break
    sleep 2
  done
  riskstream audit
  in_image python3 -c "import urllib.request as r; print('probe', r.urlopen('http://127.0.0.1:9100/livez', timeout=4).status)"
  .venv/bin/python - << 'END'
import urllib.request
text = urllib.request.urlopen("http://127.0.0.1:9100/metrics", timeout=5).read().decode()
print("\n".join(line for line in text.splitlines() if line.startswith(("riskstream_model_info", "riskstream_decisions"))))
END

  say "SIGTERM to the worker"
  # buildah passes no signal on: the process in the image, its last descendant, gets it itself.
  inside=$worker_pid
  while child=$(pgrep -P "$inside" | head -1) && [[ -n $child ]]; do inside=$child; done
  kill -TERM "$inside"
  wait "$worker_pid" && code=0 || code=$?
  worker_pid=
  tail -2 "$work/worker.log"
  [[ $code -eq 0 ]] || fail "the worker ended with $code"
}

train() {
  say "in the image: riskstream train"
  in_image riskstream train --simulated 20000 --accounts 300 --out /bundles/payments
  in_image riskstream bundle verify /bundles/payments
}

make_base
build
look_inside
if [[ $target == worker ]]; then serve; else train; fi
say "image-check: good"
