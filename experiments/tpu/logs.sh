#!/usr/bin/env bash
# Shows what a run prints, of one worker or of all.
set -euo pipefail
# shellcheck source=experiments/tpu/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "Shows whether a run goes on, and the end of its log, on every worker.

  logs.sh --name=NAME --zone=ZONE [--run=RUN] [--worker=N] [--follow] [--output=FOLDER]

  --run=RUN           what start.sh called it: 'train' if not given  [\$RUN]
  --worker=N          of one worker alone
  --lines=N           how many lines: 20 if not given
  --follow            go on showing what is added, until Ctrl-C; of one slice
  --output=FOLDER     whole logs into files there, one a worker" \
  --run --worker --lines --follow --output :: "$@"

[[ $WORKER =~ ^(all|[0-9]+)$ ]] || die "--worker: '$WORKER' is no number" 2
[[ $LINES_SHOWN =~ ^[1-9][0-9]*$ ]] || die "--lines: '$LINES_SHOWN' is no number from 1 on" 2
[ -z "$FOLLOW" ] || [ "$SLICES" = 1 ] || die "--follow is of one slice: --slices=1 --name=$NAME-0" 2
[ -z "$FOLLOW" ] || [ -z "$OUTPUT" ] || die "--follow shows and --output saves; give one of them" 2

log="$HOME_THERE/logs/$RUN.log"
if [ -n "$OUTPUT" ]; then
  for node in $(nodes); do
    run mkdir -p "$OUTPUT/$node"
    run gcloud compute tpus tpu-vm ssh "$node" "${PLACE[@]}" --worker="$WORKER" \
      --command="cat $log" --output-directory="$OUTPUT/$node" </dev/null
  done
elif [ -n "$FOLLOW" ]; then
  on_workers "tail -n $LINES_SHOWN -F $log"
else
  on_workers "echo \"== \$HOSTNAME: \$(systemctl is-active lm-$RUN)\"; tail -n $LINES_SHOWN $log"
fi
