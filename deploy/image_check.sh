#!/usr/bin/env bash
# Builds both images of deploy/Dockerfile without a Docker engine, and runs them: the trainer does what compose's
# service `model` does, then a worker with that model passes `riskstream doctor` and scores from a real Kafka on this
# machine until the audit holds. `make image-check` calls it; about 10 minutes and 20 GB.
#
# As root on Debian, with buildah, debootstrap, Java, Maven and redis-server. KEEP=1 keeps the images and the
# layers in .cache/image-check, and the next run builds on them. TORCH_INDEX and TORCH_SHA256 go to the build.
#
# No registry is asked for the base image: debootstrap makes one under the name that the Dockerfile asks for.
# The machine's certificates and pip.conf are lent to the build as volumes; nothing of them stays in the image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$PWD/.cache/image-check
base=$(sed -n 's/^ARG BASE=//p' deploy/Dockerfile)
export RISKSTREAM_LOG__FORMAT=json
riskstream() { .venv/bin/riskstream "$@"; }
buildah() { command buildah --root "$work/store-$driver" --runroot "$work/run" --storage-driver "$driver" "$@"; }

say() { printf '\n--- %s\n' "$*"; }
fail() { echo "image-check: $*" >&2; exit 1; }

missing=()
for program in buildah debootstrap java mvn redis-server; do command -v $program > /dev/null || missing+=("$program"); done
((${#missing[@]})) && fail "needs ${missing[*]}. Debian: apt-get install buildah debootstrap openjdk-17-jre-headless maven redis-server"
[[ $(id -u) -eq 0 ]] || fail "needs root: it makes a root file system"

# vfs, which works everywhere, copies every layer whole: then without layers, and the stage with torch is built twice.
can_overlay() {
  local try
  try=$(mktemp -d "$work/overlay.XXXX")
  mkdir "$try"/{lower,upper,work,merged}
  mount -t overlay overlay -o "lowerdir=$try/lower,upperdir=$try/upper,workdir=$try/work" "$try/merged" 2> /dev/null \
    && umount "$try/merged" && rm -rf "$try"
}
mkdir -p "$work"
if can_overlay; then driver=overlay layers=true; else driver=vfs layers=false; fi

rates=(--volume "$PWD/examples/rates.yaml:/etc/riskstream/rates.yaml:ro" --env RISKSTREAM_SCORING__RATES=/etc/riskstream/rates.yaml)
worker_pid= containers=()
clean_up() {
  status=$?
  [[ -n $worker_pid ]] && kill "$worker_pid" 2> /dev/null && wait "$worker_pid" || true
  riskstream stack down --name image-check --wipe > /dev/null 2>&1 || true
  ((${#containers[@]})) && buildah rm "${containers[@]}" > /dev/null 2>&1 || true
  if [[ -z ${KEEP:-} ]]; then
    buildah rmi --force riskstream-check:{worker,trainer} "$base" > /dev/null 2>&1 || true
    buildah rmi --prune --force > /dev/null 2>&1 || true
  fi
  rm -rf "$work/bundles"
  exit $status
}
trap clean_up EXIT

make_base() {
  buildah inspect --type image "$base" > /dev/null 2>&1 && return # of a run with KEEP=1
  say "base image $base, by debootstrap"
  rm -rf "$work/base"
  debootstrap --variant=minbase --include=ca-certificates bookworm "$work/base" > "$work/debootstrap.log"
  # As in Debian's own image: security fixes too, and no package cache.
  printf 'deb http://deb.debian.org/%s main\n' 'debian bookworm' 'debian bookworm-updates' \
    'debian-security bookworm-security' > "$work/base/etc/apt/sources.list"
  # The build sees this machine's certificates read-only: an update of them could not be installed there.
  chroot "$work/base" sh -c 'apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get upgrade -qq -y' > "$work/upgrade.log" 2>&1
  rm -rf "$work"/base/var/{lib/apt/lists,cache/apt}/*
  tar -C "$work/base" -cf "$work/base.tar" .
  scratch=$(buildah from scratch)
  buildah add --quiet "$scratch" "$work/base.tar" /
  buildah commit --quiet --format docker --rm "$scratch" "$base"
  rm -rf "$work/base" "$work/base.tar"
}

build() { # target
  image=riskstream-check:$1
  say "build: target $1 (storage driver $driver)"
  volumes=(--volume /etc/ssl/certs:/etc/ssl/certs:ro)
  [[ -f /etc/pip.conf ]] && volumes+=(--volume /etc/pip.conf:/etc/pip.conf:ro)
  buildah bud --quiet --isolation chroot --network host --pull-never --format docker --layers=$layers "${volumes[@]}" \
    --build-arg "REVISION=$(git rev-parse HEAD)" --build-arg "CREATED=$(git log -1 --format=%cI)" \
    --build-arg "TORCH_INDEX=${TORCH_INDEX:-}" --build-arg "TORCH_SHA256=${TORCH_SHA256:-}" \
    --target "$1" --file deploy/Dockerfile --tag "$image" .
  container=$(buildah from --pull-never "$image")
  containers+=("$container")
}

in_image() { buildah run --isolation chroot --network host "${mounts[@]}" "${variables[@]}" "$container" -- "$@"; }

look_inside() { # target
  say "what is in it"
  mounts=() variables=()
  buildah inspect --type image "$image" > "$work/image.json"
  TARGET=$1 .venv/bin/python - "$work/image.json" << 'END'
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
  say "a broker and a Redis on this machine, topics, events"
  eval "$(riskstream stack up --name image-check --kafka apache --redis server)"
  riskstream topics create
  riskstream simulate --events 4000 --rate 4000 --malformed 0.01

  variables=(--env "RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS=$RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS"
    --env "RISKSTREAM_REDIS__URL=$RISKSTREAM_REDIS__URL" --env RISKSTREAM_SCORING__BUNDLE=/bundles/payments "${rates[@]:2}")
  mounts=(--volume "$work/bundles:/bundles:ro" "${rates[@]:0:2}")

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

# The shell line of compose's service `model`, as the image's user, into a folder that is that user's.
train() {
  install -d -o 10001 -g 10001 "$work/bundles"
  mounts=(--volume "$work/bundles:/bundles" "${rates[@]:0:2}")
  variables=("${rates[@]:2}")
  line=$(.venv/bin/python -c 'from tests.deploy import compose; print(compose.load()["services"]["model"]["command"][0])')
  say "in the image: $line"
  SECONDS=0
  in_image sh -c "$line"
  echo "trained in $SECONDS s"
  in_image riskstream bundle verify /bundles/payments
  in_image sh -c 'du -sm /tmp' # compose gives it 64 MB
  [[ -z $(in_image sh -c "$line") ]] || fail "the model is there and was trained again"
}

make_base
build trainer
look_inside trainer
train
build worker
look_inside worker
serve
say "image-check: good"
