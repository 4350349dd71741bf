#!/bin/sh
# What the check needs of the official image's entry point: a database at the first start, then the server.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    user=${POSTGRES_USER:-postgres}
    password=${POSTGRES_PASSWORD:-$(cat "$POSTGRES_PASSWORD_FILE")}
    mkdir -p "${PGDATA%/*}"
    # Made aside, so that a start that was cut short is not taken for a database.
    made=$PGDATA.made
    rm -rf "$made"
    printf '%s' "$password" >/tmp/password
    initdb --auth=scram-sha-256 --username="$user" --pwfile=/tmp/password --encoding=UTF8 --pgdata="$made"
    rm /tmp/password
    echo 'host all all all scram-sha-256' >>"$made/pg_hba.conf"
    if [ "${POSTGRES_DB:-$user}" != postgres ]; then
        echo "CREATE DATABASE \"${POSTGRES_DB:-$user}\";" | postgres --single -D "$made" postgres
    fi
    rm -rf "$PGDATA"
    mv "$made" "$PGDATA"
fi
exec postgres -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql "$@"
