# Sourced by backup.sh, and sent to the pod by scripts/backup.sh and scripts/restore.sh.
# shellcheck shell=sh
# mongodb_tool TOOL URI OPTION...: run mongodump or mongorestore. The URI contains the password, so it is in a file that only
# this user can read. Tools older than 100.3 have no option for such a file: they get the URI as an argument, which other
# processes of this pod, and root on the node, can see while the tool runs.
mongodb_tool() {
  tool=$1 uri=$2 status=0
  shift 2
  if "$tool" --help </dev/null 2>&1 | grep -q -e '--config'; then
    config=$(mktemp)
    printf 'uri: "%s"\n' "$uri" > "$config"
    "$tool" --config="$config" "$@" || status=$?
    rm -f "$config"
  else
    "$tool" --uri="$uri" "$@" || status=$?
  fi
  return "$status"
}
