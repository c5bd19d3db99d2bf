#!/usr/bin/env bash
# Kafka's users and what each service may do: an example, for brokers with SASL_SSL, SCRAM-SHA-512 and an authorizer:
#
#   listeners=SASL_SSL://:9093
#   sasl.enabled.mechanisms=SCRAM-SHA-512
#   authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
#   super.users=User:admin
#
# BOOTSTRAP=kafka-1.example.com:9093 ADMIN=admin.properties ./kafka.sh
#
# ADMIN is the file with the administrator's login, for the tools of Kafka's distribution, which must be on PATH. The
# services' passwords are those of ../secrets/*.env. Running it again changes the passwords and adds what is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
: "${BOOTSTRAP:?must be host:port of a broker}" "${ADMIN:?must be the file with the login of the administrator}"

# user NAME SERVICE: the password is read from a file, so that no command line shows it.
user() {
  local password
  password=$(sed -n 's/^MARKET_KAFKA_PASSWORD=//p' "../secrets/$2.env")
  [ -n "$password" ] || { echo "MARKET_KAFKA_PASSWORD is missing in secrets/$2.env" >&2; exit 1; }
  kafka-configs.sh --bootstrap-server "$BOOTSTRAP" --command-config "$ADMIN" --alter --entity-type users --entity-name "$1" \
    --add-config-file <(printf 'SCRAM-SHA-512=[password=%s]\n' "$password")
}

# allow NAME RESOURCE PATTERN OPERATION...: PATTERN is a name, or the beginning of one followed by an asterisk.
allow() {
  local name=$1 resource=$2 pattern=$3 type=literal operations=() operation
  shift 3
  for operation in "$@"; do operations+=(--operation "$operation"); done
  if [[ $pattern == *\* ]]; then pattern=${pattern%\*} type=prefixed; fi
  kafka-acls.sh --bootstrap-server "$BOOTSTRAP" --command-config "$ADMIN" --add --allow-principal "User:$name" \
    "${operations[@]}" "--$resource" "$pattern" --resource-pattern-type "$type"
}

user orders order-service
user notifications notification-service

# orders publishes events. `migrate` creates the topic and sets what it leaves open; `reconcile --topic` reads it, under
# a group name of its own, without joining the group.
allow orders topic orders Create Describe Write Read DescribeConfigs AlterConfigs
allow orders group 'reconcile-*' Describe

# notifications reads events, and owns the topics of mails that were sent, wait, or could not be sent.
allow notifications topic orders Describe Read
for topic in notifications.sent notifications.deferred orders.dead-letter; do
  allow notifications topic "$topic" Create Describe Write Read DescribeConfigs AlterConfigs
done
# Both groups, and the names under which the sent log and dead letters are read without joining a group.
for group in notifications notifications.deferred notifications.sent-log notifications-dead-letters; do
  allow notifications group "$group" Describe Read
done
