#!/bin/sh
# Writes siptrunkv1/ from the protos. Needs protoc, protoc-gen-go and protoc-gen-go-grpc.
set -eu
protos=${1:?the directory that has siptrunk/v1}
cd "$(dirname "$0")"
package=example.com/trunks/siptrunkv1
set --
for file in "$protos"/siptrunk/v1/*.proto; do
  name=siptrunk/v1/${file##*/}
  set -- "$@" "--go_opt=M$name=$package" "--go-grpc_opt=M$name=$package" "$name"
done
protoc -I"$protos" --go_out=. --go_opt=module=example.com/trunks \
  --go-grpc_out=. --go-grpc_opt=module=example.com/trunks "$@"
