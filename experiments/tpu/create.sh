#!/usr/bin/env bash
# Creates a Cloud TPU VM, a slice of several, or several slices; waits until it is there.
# It costs money from then on, until delete.sh.
set -euo pipefail
# shellcheck source=experiments/tpu/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "Creates a TPU, and waits until it is there. It costs money until delete.sh.

  create.sh --name=NAME --zone=ZONE --type=TYPE [--spot] [--queued] [--slices=N]

  --type=TYPE         v4-8, v5litepod-16, v5p-128, v6e-64 …   [\$ACCELERATOR_TYPE]
                      (v5litepod and v6e count chips, v4 and v5p cores: two a chip)
  --runtime=VERSION   of the VMs' software; else the type's   [\$RUNTIME_VERSION]
  --spot              cheap, and taken away at any time       [\$SPOT=1]" \
  --type --runtime --spot :: "$@"

[ -n "$TYPE" ] || die "of which type? --type=v5litepod-16, or \$ACCELERATOR_TYPE" 2
[[ $TYPE =~ ^(v2|v3|v4|v5litepod|v5p|v6e)-[1-9][0-9]*$ ]] || case $TYPE in
  v5e-*) die "--type: Cloud TPU writes v5litepod-${TYPE#v5e-} for $TYPE" 2 ;;
  tpu7x* | v7x*) die "--type: $TYPE is to be had on GKE alone, not as a TPU VM" 2 ;;
  *:*) die "--type: '$TYPE' is a topology, of tools.plan; see the table in README.md" 2 ;;
  *) die "--type: '$TYPE' is none of v2-…, v3-…, v4-…, v5litepod-…, v5p-…, v6e-…" 2 ;;
esac
# https://cloud.google.com/tpu/docs/runtimes, for JAX.
case $TYPE in
  v5litepod-*) default=v2-alpha-tpuv5-lite ;;
  v5p-*) default=v2-alpha-tpuv5 ;;
  v6e-*) default=v2-alpha-tpuv6e ;;
  *) default=tpu-ubuntu2204-base ;;
esac
RUNTIME=${RUNTIME:-$default}

MORE=()
[ -z "$SPOT" ] || MORE+=(--spot)

if [ -z "$QUEUED" ]; then
  run gcloud compute tpus tpu-vm create "$NAME" "${PLACE[@]}" \
    --accelerator-type="$TYPE" --version="$RUNTIME" ${MORE[@]+"${MORE[@]}"}
  exit
fi

if [ "$SLICES" = 1 ]; then
  MORE+=(--node-id="$NAME")
else
  MORE+=(--node-count="$SLICES" --node-prefix="$NAME")
fi
run gcloud compute tpus queued-resources create "$NAME" "${PLACE[@]}" \
  --accelerator-type="$TYPE" --runtime-version="$RUNTIME" "${MORE[@]}"
echo "# it is queued; waiting until it is ACTIVE, which may take hours (Ctrl-C leaves it queued)"
[ -z "$DRY_RUN" ] || exit 0
while true; do
  now=$(state)
  [ "$now" != ACTIVE ] || break
  case $now in
    FAILED | SUSPENDING | SUSPENDED | DELETING | NONE)
      die "the queued resource $NAME is $now; delete.sh --queued takes it away" ;;
  esac
  echo "$(date +%H:%M:%S) $now"
  sleep 30
done
echo "ACTIVE"
