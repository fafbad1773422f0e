#!/usr/bin/env bash
# Deletes a TPU, and lists what is still there and costs money.
set -euo pipefail
# shellcheck source=experiments/tpu/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "Deletes a TPU with its workers' disks, and lists what is left in the zone. Workdirs
on a share stay.

  delete.sh --name=NAME --zone=ZONE [--queued] [--slices=N] [--yes]

  --yes               do not ask" \
  --yes :: "$@"

MORE=()
[ -z "$YES" ] || MORE+=(--quiet)
if [ -n "$QUEUED" ]; then
  # --force: with its nodes, whatever state they are in.
  run gcloud compute tpus queued-resources delete "$NAME" "${PLACE[@]}" --force ${MORE[@]+"${MORE[@]}"}
else
  run gcloud compute tpus tpu-vm delete "$NAME" "${PLACE[@]}" ${MORE[@]+"${MORE[@]}"}
fi
echo "# what is left in $ZONE, and costs money:"
run gcloud compute tpus tpu-vm list "${PLACE[@]}"
run gcloud compute tpus queued-resources list "${PLACE[@]}"
