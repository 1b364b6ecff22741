#!/usr/bin/env bash
# One order over two databases, with curl and psql: bash order.sh dev.json
set -euo pipefail
dev=$1
sidecar=$(jq -r .sidecar "$dev")
token=$(jq -r .token "$dev")

ask() { curl -sS --fail-with-body -H "Authorization: Bearer $token" "$@"; }

# run PARTICIPANT SQL: in a branch of the transaction.
run() {
    local branch
    branch=$(ask "$tx/branches" --json "{\"participant\": \"$1\"}")
    psql "$(jq -r ".participants.$1" "$dev")" -qAt -v ON_ERROR_STOP=1 -o /dev/null \
        -c "$(jq -r .begin <<<"$branch"); $2; $(jq -r .prepare <<<"$branch")"
}

tx=$sidecar/v1/transactions/$(ask --json '{"timeout_ms": 30000}' "$sidecar/v1/transactions" | jq -r .id)
# What fails in between leaves nothing: a transaction that is rolled back is in no database.
trap 'ask -X POST "$tx/rollback" >&2' ERR
run orders "insert into orders (item) values ('a lamp')"
run payments "update accounts set balance = balance - 15 where name = 'ada'"
trap - ERR
ask -X POST "$tx/commit" | jq -r .outcome
