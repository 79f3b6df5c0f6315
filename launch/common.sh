# What the launch scripts share; sourced, never run.
# shellcheck shell=bash

if ((BASH_VERSINFO[0] < 5)); then
  echo "error: bash $BASH_VERSION is too old, 5 or newer is needed (macOS: brew install bash)" >&2
  exit 2
fi

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
dry_run=0

# Stop with one error; status 2 says that nothing was started.
fail() {
  echo "error: $*" >&2
  exit 2
}

# Print the comment at the top of the calling script, which is its help.
usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

# Stop unless each named variable is set: require PROJECT ZONE
require() {
  local name
  for name in "$@"; do
    [[ -n ${!name:-} ]] || fail "$name is not set: $name=... $0 ... (see $0 --help)"
  done
}

# Stop unless a name is safe in a file's name and in a remote command: plain_name RUN
plain_name() {
  [[ ${!1} =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || fail "$1='${!1}' may hold letters, digits, '.', '_' and '-' only"
}

# Print words as one line that a shell reads back as the same words.
quoted() {
  local word line=""
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word="${word@Q}"
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Run a command, or only print it.
execute() {
  if ((dry_run)); then quoted "$@"; else "$@"; fi
}

# Read [--dry-run] COMMAND [-- ARGUMENT...] into dry_run, command and arguments.
# shellcheck disable=SC2034  # read by the scripts that source this
parse() {
  command="" arguments=()
  while (($#)); do
    case "$1" in
      --dry-run) dry_run=1 ;;
      -h | --help) usage && exit 0 ;;
      --) shift && arguments=("$@") && break ;;
      -*) fail "unknown flag $1; arguments of exit_jax.main come after --" ;;
      *) [[ -z $command ]] || fail "one command at a time: $command or $1?" && command="$1" ;;
    esac
    shift
  done
  [[ -n $command ]] || fail "no command given (see $0 --help)"
}

# Pack the committed tree of a revision: what runs remotely is what git knows, never a half-edited file.
pack() {
  execute mkdir -p "$root/build"
  execute git -C "$root" archive --format=tar.gz --output="$root/build/exit_jax.tar.gz" "$1"
}
