#!/usr/bin/env bash
# Ends a run on every worker after it has saved a checkpoint. The TPU goes on costing.
set -euo pipefail
# shellcheck source=experiments/tpu/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "Ends a run on every worker: each gets SIGTERM, at which a checkpoint is saved. The
TPU stays, and goes on costing money.

  stop.sh --name=NAME --zone=ZONE [--run=RUN]

  --run=RUN           what start.sh called it: 'train' if not given  [\$RUN]" \
  --run :: "$@"

# --no-block: workers end together, none before it is known that all shall.
on_workers "sudo systemctl stop --no-block lm-$RUN"
