#!/usr/bin/env bash
# Brings a run back: the TPU where it was preempted, and the run from its last checkpoint.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=experiments/tpu/common.sh
. "$here/common.sh"

parse "Brings a run back. Where the TPU was taken away, it is deleted and created again,
and the code installed; then the run is started, which goes on from its last checkpoint.
Nothing happens where the run still goes on.

  resume.sh --name=NAME --zone=ZONE --type=TYPE [--spot] [--watch] -- --config=… --workdir=…

  --type=TYPE, --runtime=VERSION, --spot   as of create.sh
  --mount=HOST:/SHARE                      as of install.sh
  --run=RUN                                as of start.sh
  --watch             look every minute, until Ctrl-C or the run has ended" \
  --type --runtime --spot --mount --run --watch -- :: "$@"

[ -n "$TYPE" ] || die "of which type? --type=v5litepod-16, or \$ACCELERATOR_TYPE" 2
[ ${#TRAIN_FLAGS[@]} -gt 0 ] || die "resume what? give lm.train's flags after --" 2
# What is given travels to the other scripts by the environment.
export TPU_NAME=$NAME ZONE PROJECT_ID=$PROJECT ACCELERATOR_TYPE=$TYPE
export RUNTIME_VERSION=$RUNTIME NUM_SLICES=$SLICES SPOT QUEUED MOUNT RUN
DRY=()
[ -z "$DRY_RUN" ] || DRY+=(--dry-run)

# Chained, as `set -e` is off in what follows an `if`.
create() {
  bash "$here/create.sh" ${DRY[@]+"${DRY[@]}"} &&
    bash "$here/install.sh" ${DRY[@]+"${DRY[@]}"}
}

recreate() {
  bash "$here/delete.sh" --yes ${DRY[@]+"${DRY[@]}"} && create
}

start() {
  bash "$here/start.sh" ${DRY[@]+"${DRY[@]}"} -- "${TRAIN_FLAGS[@]}"
}

# A mistake ends it before anything is deleted or costs money.
(DRY=(--dry-run) && create && start) >/dev/null

# how_it_goes: of the run on the first worker, which ends with any other: `runs`, `failed`,
# `ended` where it did so on its own, `missing` where it was never started.
how_it_goes() {
  local node unit="lm-$RUN"
  node=$(nodes | head -n 1)
  gcloud compute tpus tpu-vm ssh "$node" "${PLACE[@]}" --worker=0 --command="\
if systemctl is-active --quiet $unit; then echo runs; \
elif systemctl is-failed --quiet $unit; then echo failed; \
elif [ -e $HOME_THERE/logs/$RUN.log ]; then echo ended; else echo missing; fi" \
    </dev/null 2>/dev/null || echo unreachable
}

if [ -n "$DRY_RUN" ]; then
  echo "# if it was preempted:"
  recreate
  echo "# then, and if the TPU is there but the run is not:"
  start
  exit
fi
# look: does what the state asks for; fails where that fails, such as for lack of TPUs.
look() {
  local now how
  now=$(state) || return
  case $now in
    READY | ACTIVE)
      how=$(how_it_goes)
      case $how in
        failed | missing) start ;;
        ended)
          echo "the run has ended; logs.sh shows how, and delete.sh ends what it costs"
          WATCH=
          ;;
        *) echo "$(date +%H:%M:%S) the run: $how" ;;
      esac
      ;;
    NONE) create && start ;;
    PREEMPTED | TERMINATED | STOPPED | SUSPENDED | FAILED) recreate && start ;;
    *) echo "$(date +%H:%M:%S) the TPU is $now" ;;
  esac
}

while true; do
  if ! look; then
    [ -n "$WATCH" ] || exit 1
    echo "$(date +%H:%M:%S) trying again in a minute"
  fi
  [ -n "$WATCH" ] || break
  sleep 60
done
