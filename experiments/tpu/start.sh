#!/usr/bin/env bash
# Starts lm.train on every worker, in the background, and returns.
set -euo pipefail
# shellcheck source=experiments/tpu/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "Starts lm.train on every worker, in the background, and returns. The run goes on
when you log out; each worker's log is ~/lm/logs/RUN.log.

  start.sh --name=NAME --zone=ZONE [--run=RUN] -- --config=… --workdir=shared/runs/…

  --run=RUN           what the run is called: 'train' if not given  [\$RUN]" \
  --run -- :: "$@"

[ ${#TRAIN_FLAGS[@]} -gt 0 ] || die "train what? give lm.train's flags after --" 2
workdir=
config=
previous=
for flag in "${TRAIN_FLAGS[@]}"; do
  case $previous in
    --workdir) flag=--workdir=$flag ;;
    --config) flag=--config=$flag ;;
  esac
  case $flag in
    --workdir=*) workdir=${flag#*=} ;;
    --config=*) config=${flag#*=} ;;
  esac
  previous=$flag
done
[ -n "$config" ] || die "after -- there is no --config=FILE" 2
[ -n "$workdir" ] || die "after -- there is no --workdir=FOLDER" 2
case $workdir in
  *://*) die "--workdir=$workdir is no folder; mount what all workers share (install.sh --mount) and name a folder of shared/" 2 ;;
  shared/* | /*) ;;
  *) die "--workdir=$workdir is on each worker's own disk, which goes with the TPU; name a folder of shared/ (install.sh --mount) or an absolute one" 2 ;;
esac

# systemd keeps it running when ssh ends, refuses to start it twice, and at stop.sh, and
# when a spot VM is shut down, sends the SIGTERM at which a run saves a checkpoint.
on_workers "set -e
cd $HOME_THERE && mkdir -p logs
sudo systemctl reset-failed lm-$RUN 2>/dev/null || true
sudo systemd-run --quiet --unit=lm-$RUN --uid=\"\$USER\" --working-directory=\"\$PWD\" \
--setenv=HOME=\"\$HOME\" --property=KillMode=mixed --property=TimeoutStopSec=300 \
--property=StandardOutput=append:\"\$PWD/logs/$RUN.log\" --property=StandardError=append:\"\$PWD/logs/$RUN.log\" \
.venv/bin/python -m lm.train --distributed $(quote "${TRAIN_FLAGS[@]}")"
echo "# it goes on in the background; see logs.sh, and delete.sh once it is done"
