# What the scripts beside it share: flags, printing, commands on every worker.
# Works with bash 3.2, which macOS has.
# shellcheck shell=bash
# Those that source it use what is set here, and ~ is meant for the workers.
# shellcheck disable=SC2034,SC2088

NAME=${TPU_NAME:-}
ZONE=${ZONE:-}
PROJECT=${PROJECT_ID:-}
TYPE=${ACCELERATOR_TYPE:-}
RUNTIME=${RUNTIME_VERSION:-}
SLICES=${NUM_SLICES:-1}
SPOT=${SPOT:-}
QUEUED=${QUEUED:-}
MOUNT=${MOUNT:-}
RUN=${RUN:-train}
DRY_RUN=
WORKER=all
LINES_SHOWN=20
FOLLOW=
OUTPUT=
WATCH=
YES=
TRAIN_FLAGS=()

# Where the code, its environment and the logs are on a worker.
HOME_THERE='~/lm'

die() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-1}"
}

# usage TEXT: what --help prints, above the flags that all scripts have.
usage() {
  cat <<END
$1

  --name=NAME         of the TPU                      [\$TPU_NAME]
  --zone=ZONE         such as us-west4-a              [\$ZONE]
  --project=PROJECT   of Google Cloud                 [\$PROJECT_ID, else gcloud's own]
  --slices=N          slices that train together      [\$NUM_SLICES, else 1]
  --queued            it is (to be) a queued resource, as slices are  [\$QUEUED=1]
  --dry_run           print the commands and run none of them
END
}

# quote WORD…: prints the words as a shell reads them back.
quote() {
  local word separator=
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+~-]+$ ]]; then
      printf '%s%s' "$separator" "$word"
    else
      printf "%s'%s'" "$separator" "$(printf '%s' "$word" | sed "s/'/'\\\\''/g")"
    fi
    separator=' '
  done
}

# run COMMAND…: prints a command, and runs it unless this is a dry run.
run() {
  quote "$@"
  printf '\n'
  [ -n "$DRY_RUN" ] || "$@"
}

# parse HELP FLAG…: reads the flags of a script, of which HELP is told and FLAGs known
# beside those that all scripts have. What follows `--`, if that is one, goes to lm.train.
parse() {
  local help=$1 known=" --name --zone --project --slices --queued --dry-run --help "
  shift
  while [ $# -gt 0 ] && [ "$1" != "::" ]; do
    known+="$1 "
    shift
  done
  shift
  local word flag value
  while [ $# -gt 0 ]; do
    word=$1
    shift
    if [ "$word" = -- ]; then
      [[ $known == *" -- "* ]] || die "nothing comes after -- here; see --help" 2
      TRAIN_FLAGS=("$@")
      break
    fi
    flag=${word%%=*}
    flag=${flag//_/-}
    [[ $known == *" $flag "* ]] || die "unknown argument '$word'; see --help" 2
    case $flag in
      --help) usage "$help"; exit 0 ;;
      --dry-run | --queued | --spot | --follow | --watch | --yes)
        [[ $word != *=* ]] || die "$flag takes no value" 2
        value=1
        ;;
      *)
        if [[ $word == *=* ]]; then
          value=${word#*=}
        else
          [ $# -gt 0 ] || die "$flag needs a value: $flag=…" 2
          value=$1
          shift
        fi
        [ -n "$value" ] || die "$flag needs a value: $flag=…" 2
        ;;
    esac
    case $flag in
      --name) NAME=$value ;;
      --zone) ZONE=$value ;;
      --project) PROJECT=$value ;;
      --slices) SLICES=$value ;;
      --queued) QUEUED=1 ;;
      --dry-run) DRY_RUN=1 ;;
      --type) TYPE=$value ;;
      --runtime) RUNTIME=$value ;;
      --spot) SPOT=1 ;;
      --mount) MOUNT=$value ;;
      --run) RUN=$value ;;
      --worker) WORKER=$value ;;
      --lines) LINES_SHOWN=$value ;;
      --follow) FOLLOW=1 ;;
      --output) OUTPUT=$value ;;
      --watch) WATCH=1 ;;
      --yes) YES=1 ;;
    esac
  done
  check
}

check() {
  [ -n "$NAME" ] || die "which TPU? --name=NAME or \$TPU_NAME" 2
  [[ $NAME =~ ^[a-z]([a-z0-9-]{0,37}[a-z0-9])?$ ]] ||
    die "--name: '$NAME' must be small letters, digits and '-', at most 39, a letter first" 2
  [ -n "$ZONE" ] || die "in which zone? --zone=ZONE or \$ZONE" 2
  [[ $ZONE =~ ^[a-z]+-[a-z]+[0-9]+-[a-z0-9]+$ ]] || die "--zone: '$ZONE' is no zone, such as us-west4-a" 2
  [[ $SLICES =~ ^[1-9][0-9]{0,3}$ ]] || die "--slices: '$SLICES' is no number from 1 on" 2
  [[ $RUN =~ ^[A-Za-z0-9_-]+$ ]] || die "--run: '$RUN' must be letters, digits, '-' and '_'" 2
  # Only the queue hands out several slices at once.
  [ "$SLICES" = 1 ] || QUEUED=1
  if [ -z "$DRY_RUN" ] && ! command -v gcloud >/dev/null; then
    die "no gcloud here; install it: https://cloud.google.com/sdk/docs/install"
  fi
  PLACE=(--zone="$ZONE")
  [ -z "$PROJECT" ] || PLACE+=(--project="$PROJECT")
}

# nodes: the names of the slices, a line each.
nodes() {
  local i
  if [ "$SLICES" = 1 ]; then
    printf '%s\n' "$NAME"
  else
    for ((i = 0; i < SLICES; i++)); do printf '%s-%s\n' "$NAME" "$i"; done
  fi
}

# on_workers SHELL [FLAG…]: runs a line of shell on every worker of every slice.
on_workers() {
  local line=$1 node
  shift
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm ssh "$node" "${PLACE[@]}" --worker="$WORKER" \
      --command="$line" "$@" </dev/null
  done
}

# state: of the TPU, in a word; NONE where there is none.
state() {
  local kind=tpu-vm field=state answer
  if [ -n "$QUEUED" ]; then
    kind=queued-resources field=state.state
  fi
  if answer=$(gcloud compute tpus "$kind" describe "$NAME" "${PLACE[@]}" \
    --format="value($field)" 2>&1); then
    printf '%s\n' "$answer" | tail -n 1
  elif [[ $answer == *NOT_FOUND* || $answer == *"not found"* ]]; then
    echo NONE
  else
    die "gcloud cannot tell the state of $NAME: $(printf '%s' "$answer" | tr '\n' ' ')"
  fi
}
