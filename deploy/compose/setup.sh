# Makes the cluster and its certificates, once, in the volume of compose.yaml.
set -eu
cd /var/lib/undoubt
umask 077

# A run that was interrupted begins anew: no node has started, because all of them wait for this one to complete.
if [ -e certs/complete ]; then exit 0; fi
rm -rf certs node-1 node-2 node-3

id=
for number in 1 2 3; do
    export UNDOUBT_NODE__NUMBER=$number UNDOUBT_NODE__DATA=/var/lib/undoubt/node-$number
    # Made below, since they name the cluster.
    export UNDOUBT_LEDGER__TLS_CERT=$PWD/certs/node-$number.crt UNDOUBT_LEDGER__TLS_KEY=$PWD/certs/node-$number.key
    undoubt cluster init --yes ${id:+--id "$id"} >/tmp/id
    id=${id:-$(cat /tmp/id)}
done
undoubt cluster certs --dir certs --id "$id" --node 1 --node 2 --node 3
undoubt cluster certs --dir certs --client sidecar --role transact
undoubt cluster certs --dir certs --client operator --role operate
touch certs/complete
