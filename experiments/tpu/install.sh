#!/usr/bin/env bash
# Puts the committed code of this checkout, and what it needs, on every worker.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=experiments/tpu/common.sh
. "$here/common.sh"

parse "Puts the last commit of this checkout and what it needs on every worker.

  install.sh --name=NAME --zone=ZONE [--mount=HOST:/SHARE]

  --mount=HOST:/SHARE an NFS share, such as one of Filestore, which all workers then have
                      at ~/lm/shared: workdirs and data live there     [\$MOUNT]" \
  --mount :: "$@"

[[ -z $MOUNT || $MOUNT =~ ^[A-Za-z0-9.-]+:/[A-Za-z0-9_./-]*$ ]] ||
  die "--mount: '$MOUNT' is not HOST:/SHARE" 2

archive=$(git -C "$here" rev-parse --show-toplevel 2>/dev/null)/.git ||
  die "this is no checkout of git, of which the last commit is installed; clone the project"
[ -z "$(git -C "$here/../.." status --porcelain)" ] ||
  echo "# what is not committed (git status) is not installed"
[ -d "$archive" ] || archive=${TMPDIR:-/tmp}
archive=$archive/lm-$NAME.tar.gz
run git -C "$here/../.." archive --format=tar.gz --output="$archive" HEAD
for node in $(nodes); do
  run gcloud compute tpus tpu-vm scp "$archive" "$node:lm.tar.gz" "${PLACE[@]}" --worker=all
done

# The VMs' own Python is 3.10; uv fetches a newer one. The extra of jax that pins libtpu
# is asked for in the version that the lock has.
on_workers "set -e
mkdir -p $HOME_THERE/logs && tar -xzf lm.tar.gz -C $HOME_THERE && cd $HOME_THERE
python3 -m pip install --quiet --user uv
~/.local/bin/uv python install --quiet 3.12
make install PYTHON=\"\$(~/.local/bin/uv python find 3.12)\"
version=\$(.venv/bin/python -c 'import importlib.metadata as m; print(m.version(\"jax\"))')
.venv/bin/python -m pip install --quiet \"jax[tpu]==\$version\""
if [ -n "$MOUNT" ]; then
  on_workers "set -e
mkdir -p $HOME_THERE/shared
mountpoint -q $HOME_THERE/shared || {
  sudo apt-get install -qq -y nfs-common
  sudo mount -t nfs -o hard,noatime $MOUNT $HOME_THERE/shared
  sudo chown \"\$USER\" $HOME_THERE/shared
}"
fi
# All workers of a slice at once: each waits for the others to see the TPU.
on_workers "cd $HOME_THERE && .venv/bin/python -c 'import jax; print(jax.device_count(), \"chips,\", jax.local_device_count(), \"of them here:\", jax.devices()[0].device_kind)'"
